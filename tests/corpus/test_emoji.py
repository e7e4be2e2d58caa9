import json

import numpy as np
import pytest
from PIL import Image

from geminid.corpus import emoji
from geminid.corpus.emoji import IconSet

HALF = '<rect width="4" height="8" fill="#ff0000"/>'  # the left half of an 8 x 8 icon is red


def icon_set(style="x", icons=None, aliases=None, by_points=None):
    return IconSet(style, icons or {}, aliases or {}, by_points or {}, {"width": 8, "height": 8})


def test_rendered_pixels():
    picture = emoji.render(icon_set(icons={"a": {"body": HALF}}).svg("a"), 16)
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    assert (picture[:, :5] == (255, 0, 0)).all()  # the Lanczos filter rings beside the edge
    assert (picture[:, 11:] == 255).all()


@pytest.mark.parametrize(("flip", "red"), [("hFlip", np.s_[:, 11:]), ("vFlip", np.s_[11:, :])])
def test_flipped_aliases(flip, red):
    body = HALF if flip == "hFlip" else '<rect width="8" height="4" fill="#ff0000"/>'
    icons = icon_set(icons={"a": {"body": body}}, aliases={"b": {"parent": "a", flip: True}, "c": {"parent": "b"}})
    picture = emoji.render(icons.svg("c"), 16)
    assert (picture[red] == (255, 0, 0)).all()
    assert (picture == 255).all(axis=-1).sum() >= 16 * 5
    twice = icon_set(
        icons={"a": {"body": body}}, aliases={"b": {"parent": "a", flip: True}, "d": {"parent": "b", flip: True}}
    )
    assert (emoji.render(twice.svg("d"), 16) == emoji.render(twice.svg("a"), 16)).all()


@pytest.mark.parametrize(("width", "height"), [(8, 4), (4, 8)])
def test_aspect_is_kept_on_a_white_square(width, height):
    icon = {"body": f'<rect width="{width}" height="{height}" fill="#0000ff"/>', "width": width, "height": height}
    picture = emoji.render(icon_set(icons={"a": icon}).svg("a"), 16)
    blue = (picture == (0, 0, 255)).all(axis=-1)
    rows, columns = np.nonzero(blue.any(axis=1))[0], np.nonzero(blue.any(axis=0))[0]
    assert abs(len(columns) / len(rows) - width / height) < 0.35
    assert (len(columns), len(rows)) == ((16, 8) if width > height else (8, 16))
    assert abs(blue.mean() - 0.5) < 0.05


def test_transparency_is_white():
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (emoji.fit(half, 8) == 255).all()
    grey = emoji.fit(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), 8)
    assert (np.abs(grey.astype(int) - 127) <= 1).all()


def test_broken_svg():
    with pytest.raises(emoji.UndrawableError):
        emoji.render("<svg", 16)
    good = icon_set(icons={"a": {"body": HALF}}).svg("a")
    rendered = list(emoji.render_all([good, "<svg", good], 16, num_workers=1))
    assert isinstance(rendered[1], str)
    assert (rendered[0] == rendered[2]).all()


def test_workers_keep_the_order():
    svgs = [icon_set(icons={"a": {"body": HALF.replace("ff0000", f"{i:02x}0000")}}).svg("a") for i in range(100)]
    pictures = list(emoji.render_all(svgs, 8, num_workers=2))
    reds = [int(picture[4, 1, 0]) for picture in pictures]
    assert np.abs(np.array(reds) - np.arange(100)).max() <= 2  # ringing


def test_matching_by_code_points_then_by_names():
    body = {"body": HALF}
    modern = icon_set("modern", {"bear": body, "new-game": body}, {}, {"1f43b": "bear", "1f3cf": "cricket-game"})
    modern = IconSet("modern", {**modern.icons, "cricket-game": body}, {}, modern.by_points, modern.defaults)
    old = icon_set("old", {"bear-face": body, "cricket": body, "wolf": body}, {"bear": {"parent": "bear-face"}})
    concepts = {"1f43b": "bear", "1f997": "cricket", "1f3cf": "cricket game", "1f43a": "wolf", "1f419": "octopus"}
    found = emoji.icons_of_concepts([modern, old], concepts)
    assert found["bear"] == {"modern": "bear", "old": "bear"}
    assert found["wolf"] == {"old": "wolf"}
    assert "octopus" not in found


def test_a_drawing_two_concepts_claim_goes_to_neither():
    body = {"body": HALF}
    modern = icon_set("modern", {"cricket": body, "bug": body}, {}, {"1f3cf": "cricket", "1f997": "bug"})
    old = icon_set("old", {"cricket": body})
    found = emoji.icons_of_concepts([modern, old], {"1f997": "cricket", "1f3cf": "cricket game"})
    assert found == {"cricket game": {"modern": "cricket"}, "cricket": {"modern": "bug"}}


def test_slug():
    assert emoji.slug("jack-o’-lantern") == "jack-o-lantern"
    assert emoji.slug("woman’s hat!") == "womans-hat"


def test_broken_set_is_one_line(tmp_path):
    (tmp_path / "icons.json").write_text('{"icons": ')
    with pytest.raises(ValueError, match="emoji set noto is broken in ") as error:
        emoji.read_icon_set("noto", tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "icons.json").write_text(json.dumps({"icons": {}}))
    (tmp_path / "chars.json").write_text(json.dumps({"0023-fe0f-20e3": "keycap"}))
    assert emoji.read_icon_set("noto", tmp_path).by_points == {"23-20e3": "keycap"}
