"""Recordings: decoding, trimming, and what real clips are called and held out for."""

import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from geminid.config import DataConfig
from geminid.corpus import recordings, stamps
from geminid.corpus.fetch import default_cache
from geminid.corpus.packages import packages_for
from geminid.corpus.splits import is_word_concept


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0, level: float = 0.3) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return np.rint(level * 32767 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16_000), np.int16)


def write_audio(path: Path, samples: np.ndarray, rate: int = 16_000, codec: str = "libopus", title: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate, frame_size=size)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def loudest_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(float)))
    return float(np.fft.rfftfreq(len(samples), 1 / 16_000)[spectrum.argmax()])


@pytest.mark.parametrize(("name", "codec", "rate"), [("a.wav", "pcm_s16le", 8_000), ("a.ogg", "libopus", 48_000)])
def test_decode_gives_16_khz_mono_of_the_same_pitch_and_length(tmp_path, name, codec, rate):
    write_audio(tmp_path / name, tone(0.8, rate), rate, codec)
    samples = recordings.decode(tmp_path / name)
    assert samples.dtype == np.int16 and samples.ndim == 1
    assert abs(len(samples) - 0.8 * 16_000) < 0.02 * 16_000
    assert abs(loudest_hertz(samples) - 440) < 3


@pytest.mark.parametrize("content", [None, b"", b"OggS" + bytes(200), b"this is no recording"])
def test_a_missing_or_broken_recording_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "cow_desc_fr.ogg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        recordings.decode(path)
    assert "\n" not in str(caught.value) and "geminid data fetch" in str(caught.value)


def test_trim_cuts_silence_to_50_ms_and_sets_the_peak():
    samples = np.concatenate([silence(0.5), tone(0.4), silence(0.3)])
    trimmed = recordings.trim(samples)
    assert trimmed.dtype == np.int16
    assert abs(len(trimmed) / 16_000 - 0.5) <= 0.02  # 0.4 s of tone and twice 50 ms, in frames of 10 ms
    assert np.abs(trimmed).max() == round(32768 * 10 ** (-3 / 20))
    assert np.abs(len(recordings.trim(trimmed)) - len(trimmed)) <= 160  # what is trimmed stays


def test_trim_hears_through_room_noise_and_clicks():
    noise = np.random.default_rng(0).normal(0, 0.03 * 0.3 * 32767, 16_000 * 2)  # 27 dB below the tone
    noise[16_000 : 16_000 + 6_400] += tone(0.4)
    noise[800:960] += tone(0.01)
    trimmed = recordings.trim(noise.astype(np.int16))
    assert abs(len(trimmed) / 16_000 - 0.5) <= 0.03


def test_trim_keeps_a_clip_that_is_all_sound_and_empties_a_silent_one():
    assert len(recordings.trim(tone(0.3))) == 4_800
    assert len(recordings.trim(silence(0.3))) == 0


def test_a_quieter_copy_is_trimmed_to_the_same_clip():
    samples = np.concatenate([silence(0.2), tone(0.3, level=0.8), silence(0.2)])
    quiet = (samples // 16).astype(np.int16)
    difference = recordings.trim(samples).astype(int) - recordings.trim(quiet)
    assert np.abs(difference).max() < 32  # rounding of the quiet copy, 60 dB below full scale


def test_stamp_texts_prefer_the_language_itself_and_drop_the_closing_stop(tmp_path):
    path = tmp_path / "cow.txt"
    path.write_text(
        "A cow.\nca@valencia.utf8=Una vaca valenciana.\nca.utf8=Una vaca.\nzh_CN.utf8=母牛。\nru.utf8=\nno tail\n"
    )
    texts = recordings.stamp_texts(path)
    assert texts["en"] == "A cow" and texts["ca"] == "Una vaca" and texts["zh"] == "母牛"
    assert "ru" not in texts
    assert recordings.stamp_texts(tmp_path / "absent.txt") == {}


@pytest.fixture
def farm(tmp_path) -> Path:
    """Two stamps of a cow and one of an owl, with recordings of distinct pitch and the copies that must not leak."""
    folder = tmp_path / "animals"
    pitches = {
        "cow": 300,
        "cow_desc": 400,
        "cow_desc_fr": 500,
        "cow_desc_en_GB": 600,
        "cow_desc_da": 700,
        "owl_desc_fr": 800,
    }
    for name, hertz in pitches.items():
        write_audio(folder / f"{name}.ogg", tone(0.4, hertz=hertz))
    write_audio(folder / "cow_white_desc_fr.ogg", tone(0.4, hertz=500), title="a copy")
    write_audio(folder / "cow_white_desc.ogg", tone(3.0, hertz=450))
    write_audio(folder / "owl.ogg", np.zeros(4_000, np.int16))
    (folder / "cow.txt").write_text("A cow.\nfr.utf8=Une vache.\n")
    return tmp_path


def test_stamp_clips_name_language_voice_and_reason(farm):
    skipped: Counter[str] = Counter()
    matches = {"animals/cow": "cow", "animals/cow_white": "cow", "animals/owl": "owl"}
    config = DataConfig(languages=("en", "fr"))
    found = list(recordings.stamp_clips(farm, matches, config, skipped))
    spoken = {(m.concept, m.language, m.text, m.voice) for m, _ in found if m.kind == "name"}
    assert spoken == {
        ("cow", "en", "A cow", "tuxpaint-en"),
        ("cow", "en", "A cow", "tuxpaint-en_gb"),
        ("cow", "fr", "Une vache", "tuxpaint-fr"),
        ("owl", "fr", "owl", "tuxpaint-fr"),  # no text: the concept's own name
    }
    assert [(m.concept, m.language, m.split) for m, _ in found if m.kind == "sound"] == [("cow", "und", "train")]
    assert all(m.real and m.num_samples == len(x) and x.dtype == np.int16 for m, x in found)
    assert skipped == {"duplicate": 1, "too long": 1, "silent": 1}


def test_a_recording_of_two_concepts_is_left_out(farm):
    skipped: Counter[str] = Counter()
    config = DataConfig(languages=("fr",))
    found = list(recordings.stamp_clips(farm, {"animals/cow": "cow", "animals/cow_white": "ox"}, config, skipped))
    assert [m.kind for m, _ in found] == ["sound"]
    assert skipped == {"ambiguous": 2}


def test_a_phrase_of_two_concepts_is_left_out(farm):
    skipped: Counter[str] = Counter()
    (farm / "animals" / "owl.txt").write_text("An owl.\nfr.utf8=une vache\n")
    config = DataConfig(languages=("fr",))
    found = list(recordings.stamp_clips(farm, {"animals/cow": "cow", "animals/owl": "owl"}, config, skipped))
    assert [m.kind for m, _ in found] == ["sound"]
    assert skipped == {"ambiguous": 2, "silent": 1}


def test_a_recording_that_was_encoded_twice_comes_once(farm):
    skipped: Counter[str] = Counter()
    animals = farm / "animals"
    write_audio(animals / "cow_white_desc_fr.ogg", tone(0.4, hertz=500, level=0.29))
    (animals / "cow_white.txt").write_text((animals / "cow.txt").read_text())
    config = DataConfig(languages=("fr",))
    found = list(recordings.stamp_clips(farm, {"animals/cow": "cow", "animals/cow_white": "cow"}, config, skipped))
    assert [m.kind for m, _ in found] == ["sound", "name"]
    assert skipped == {"duplicate": 1}


def test_missing_folders_are_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"stamps folder .* is missing"):
        list(recordings.stamp_clips(tmp_path, {"animals/cow": "cow"}, DataConfig()))
    (tmp_path / "symbols" / "math").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no spoken digits \(fr\)"):
        list(recordings.digit_clips(tmp_path, {"fr": tmp_path / "absent"}, DataConfig()))


def test_digit_clips_keep_studio_voices_apart(tmp_path):
    for i, name in enumerate(["3_fr", "3_desc_fr", "3", "7_zh_tw", "3_en_GB"]):
        write_audio(tmp_path / "symbols" / "math" / f"{name}.ogg", tone(0.3, hertz=300 + 50 * i))
    studio = tmp_path / "studio"
    for digit in range(10):
        path = studio / "usr" / "share" / "asterisk" / "sounds" / "fr_CA_f_June" / "digits" / f"{digit}.wav"
        write_audio(path, tone(0.3, 8_000, hertz=700 + 50 * digit), 8_000, "pcm_s16le")
    found = [m for m, _ in recordings.digit_clips(tmp_path, {"fr": studio}, DataConfig())]
    train = sorted((m.digit, m.language, m.voice) for m in found if m.split == "train")
    assert train == [
        (3, "en", "tuxpaint-en"),
        (3, "en", "tuxpaint-en_gb"),
        (3, "fr", "tuxpaint-fr"),
        (3, "fr", "tuxpaint-fr"),
        (7, "zh", "tuxpaint-zh_tw"),
    ]
    speaker = [m for m in found if m.split == "speaker"]
    assert [m.digit for m in speaker] == list(range(10)) and {m.voice for m in speaker} == {"asterisk-fr"}
    assert all(m.kind == "digit" and m.text == str(m.digit) and m.concept is None for m in found)


@pytest.fixture(scope="module")
def real_root() -> Path:
    (package,) = [p for p in packages_for(DataConfig()) if p.name == "tuxpaint-stamps-default"]
    root = default_cache() / "packages" / package.directory
    if not root.is_dir():
        pytest.skip("the stamps are not in the cache: run geminid data fetch")
    return stamps.stamps_root(root)


@pytest.mark.data
@pytest.mark.slow
def test_real_recordings_of_word_concepts_are_never_trained_on(real_root):
    matches = {match.stamp: match.concept for match in stamps.read_matches() if match.says}
    config = DataConfig(languages=("en", "fr", "ro"))
    skipped: Counter[str] = Counter()
    num_clips: Counter[tuple[str, str]] = Counter()
    bytes_seen: set[bytes] = set()
    concepts_of: dict[tuple[str, str], set[str]] = {}
    for meta, samples in recordings.stamp_clips(real_root, matches, config, skipped):
        assert meta.concept is not None
        num_clips[meta.kind, meta.split] += 1
        assert 0.1 * 16_000 < len(samples) <= config.clip_max_s * 16_000
        assert samples.tobytes() not in bytes_seen  # no copy on either side of a split
        bytes_seen.add(samples.tobytes())
        if meta.kind == "name":
            assert (meta.split == "word") == is_word_concept(meta.concept, config.seed)
            assert meta.language in config.languages
            concepts_of.setdefault((meta.language, meta.text.casefold()), set()).add(meta.concept)
    assert all(len(concepts) == 1 for concepts in concepts_of.values())  # no phrase on both sides of "word"
    total = sum(n for (kind, _), n in num_clips.items() if kind == "name")
    assert total > 400
    assert 0.2 < num_clips["name", "word"] / total < 0.45
    assert 0.03 < num_clips["name", "normal"] / total < 0.12
    assert num_clips["sound", "train"] >= 25


@pytest.mark.data
def test_real_digits_are_single_words(real_root):
    found = list(recordings.digit_clips(real_root, {}, DataConfig()))
    languages = {m.language for m, _ in found}
    assert len(languages) >= 15 and {"en", "fr", "es", "it", "ru", "de"} <= languages
    assert Counter(m.digit for m, _ in found).keys() == set(range(10))
    assert all(0.15 < len(x) / 16_000 < 1.2 for _, x in found)
