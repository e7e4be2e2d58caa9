import numpy as np
import pytest
from PIL import Image

from geminid.corpus import animations

GREYS = [0, 40, 80, 120, 160, 200, 240]


def write_webp(path, durations_ms):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (12, 12), (grey, grey, grey)) for grey in GREYS[: len(durations_ms)]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations_ms, lossless=True)


def test_even_spacing_and_true_times(tmp_path):
    durations = [100, 200, 50, 50, 300, 100, 100]
    write_webp(tmp_path / "a.webp", durations)
    frames, times_s = animations.read_frames(tmp_path / "a.webp", 3, 8)
    assert frames.shape == (3, 8, 8, 3) and frames.dtype == np.uint8
    assert [int(frame[4, 4, 0]) for frame in frames] == [GREYS[0], GREYS[2], GREYS[4]]
    starts = np.cumsum([0, *durations]) / 1000
    assert times_s == pytest.approx((starts[0], starts[2], starts[4]))


def test_short_animation_repeats_frames(tmp_path):
    write_webp(tmp_path / "a.webp", [100, 100])
    frames, times_s = animations.read_frames(tmp_path / "a.webp", 4, 8)
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 0, 40, 40]
    assert times_s == (0.0, 0.0, 0.1, 0.1)


def test_stills_are_left_out(tmp_path):
    write_webp(tmp_path / "assets" / "1f415-fe0f.webp", [100, 100])
    Image.new("RGB", (12, 12)).save(tmp_path / "assets" / "1f511.webp")
    Image.new("RGBA", (12, 12)).save(tmp_path / "assets" / "1f512.webp")
    assert animations.find(tmp_path) == {"1f415": tmp_path / "assets" / "1f415-fe0f.webp"}


def test_no_animations_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no animations under"):
        animations.find(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"RIFF", "truncated"])
def test_missing_or_broken_is_one_line(tmp_path, content):
    path = tmp_path / "dog.webp"
    if content == "truncated":
        write_webp(path, [100] * 7)
        path.write_bytes(path.read_bytes()[:-200])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"animation .*dog.webp is missing or broken") as error:
        animations.read_frames(path, 4, 8)
    assert "\n" not in str(error.value)
