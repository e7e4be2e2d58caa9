"""Recordings -> mono 16 kHz int16 clips: real spoken names, real sounds and spoken digits.

Axis letters: n samples at 16 kHz.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from geminid.config import DataConfig
from geminid.corpus.splits import clip_name_split
from geminid.corpus.store import ClipMeta

SAMPLE_RATE = 16_000  # Hz
_FRAME = SAMPLE_RATE // 100  # 10 ms
_MARGIN = SAMPLE_RATE // 20  # 50 ms kept on both sides of what is heard
_SILENCE_DB = (-35.0, -20.0)  # relative to the loudest frame: in a quiet room, at most in a noisy one
_ABOVE_NOISE = 10 ** (6 / 10)  # what is heard lies 6 dB above the room's noise
_BURST_FRAMES = 3  # shorter bursts at the ends are clicks of the recorder's button
_PEAK = 10 ** (-3 / 20) * 32768  # -3 dBFS
_ADVICE = "remove its package from the cache and fetch it again (geminid data fetch)"
_LANGUAGE = r"[a-z]{2,3}(?:[_@][A-Za-z]+)?"


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Int16 [m] mono at `rate` Hz -> int16 [n] at 16 kHz (FFmpeg's resampler)."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = rate
    return _resampled([frame])


def _resampled(frames: Iterable[av.AudioFrame]) -> np.ndarray:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    pieces = []
    for frame in (*frames, None):  # None: hand out what the filter still holds
        pieces.extend(piece.to_ndarray()[0] for piece in resampler.resample(frame))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)


def decode(path: str | Path) -> np.ndarray:
    """Recording in any format that FFmpeg reads -> int16 [n], mono, 16 kHz.

    Raises ValueError, one line that names the file, if it is missing, broken or holds no sound.
    """
    path = Path(path)
    with _opened(path) as container:
        samples = _resampled(container.decode(audio=0))
    if not len(samples):
        raise ValueError(f"recording {path} is broken (0 samples): {_ADVICE}")
    return samples


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    if not path.is_file():
        raise ValueError(f"recording {path} is missing: {_ADVICE}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"recording {path} holds no sound: {_ADVICE}")
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"recording {path} is broken ({error.strerror}): {_ADVICE}") from None


def _fingerprint(path: Path) -> str:
    """Names what is recorded. Copies of an Ogg file differ in their page headers, so only the packets count."""
    digest = hashlib.sha256()
    with _opened(path) as container:
        for packet in container.demux(audio=0):
            digest.update(bytes(packet))
    return digest.hexdigest()


def trim(samples: np.ndarray) -> np.ndarray:
    """Int16 [m] -> int16 [n], n <= m: silence cut from both ends (50 ms stay), peak at -3 dBFS.

    Silence is what lies 35 dB below the loudest 10 ms; in a noisy room, less than 6 dB above the noise but at least
    20 dB below the loudest. A clip without any signal comes back empty.
    """
    num_frames = -(-len(samples) // _FRAME)
    signal = np.zeros(num_frames * _FRAME, np.float64)
    signal[: len(samples)] = samples
    power = np.square(signal).reshape(num_frames, _FRAME).mean(axis=1)
    if not power.any():
        return np.zeros(0, np.int16)
    quiet, noisy = (power.max() * 10 ** (level / 10) for level in _SILENCE_DB)
    noise = np.percentile(power, 5)
    heard = power > np.clip(noise * _ABOVE_NOISE, quiet, noisy)
    runs = np.flatnonzero(np.diff(np.concatenate(([0], heard, [0])))).reshape(-1, 2)  # [start, end)
    long_runs = runs[runs[:, 1] - runs[:, 0] >= _BURST_FRAMES]
    runs = long_runs if len(long_runs) else runs
    start = max(0, runs[0, 0] * _FRAME - _MARGIN)
    end = min(len(samples), runs[-1, 1] * _FRAME + _MARGIN)
    kept = signal[start:end]
    return np.rint(kept * (_PEAK / np.abs(kept).max())).astype(np.int16)


def normalise_language(language: str) -> str:
    """'en_GB' -> 'en', 'zh_tw' -> 'zh', 'ca@valencia' -> 'ca'."""
    return re.split("[_@]", language)[0].lower()


def stamp_texts(path: Path) -> dict[str, str]:
    """Descriptions of one stamp, language -> text without the closing stop; {} where there is no file.

    `path` is the stamp's text file: line 1 is English, further lines are `xx.utf8=text`. A language
    that has no entry of its own takes its first regional one (`zh` from `zh_CN`).
    """
    if not path.is_file():
        return {}
    first, *rest = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    texts = {"en": first}
    for line in rest:
        code, separator, text = line.partition(".utf8=")
        if separator and text.strip():
            texts.setdefault(code.strip(), text)
    for code in sorted(texts):
        texts.setdefault(normalise_language(code), texts[code])
    return {code: text.strip().strip(".。").strip() for code, text in texts.items() if text.strip()}


@dataclass(frozen=True)
class _Recording:
    path: Path
    kind: str  # "name" | "sound"
    concept: str
    language: str
    text: str
    voice: str

    @property
    def phrase(self) -> tuple[str, str, str]:
        """What is said: recordings of one phrase cannot be told apart by their words."""
        return self.kind, self.language, self.text.casefold()


def _stamp_recordings(stamps_root: Path, matches: Mapping[str, str], languages: set[str]) -> Iterator[_Recording]:
    listings: dict[Path, list[str]] = {}
    for stamp, concept in sorted(matches.items()):
        folder = (stamps_root / stamp).parent
        if folder not in listings:
            if not folder.is_dir():
                raise ValueError(f"stamps folder {folder} is missing: {_ADVICE}")
            listings[folder] = sorted(p.name for p in folder.iterdir())
        texts = stamp_texts(stamps_root / f"{stamp}.txt")
        name = re.escape(Path(stamp).name)
        pattern = re.compile(rf"{name}(?P<spoken>_desc(?:_(?P<language>{_LANGUAGE}))?)?\.(?:ogg|wav)")
        for path in (folder / file for file in listings[folder]):
            found = pattern.fullmatch(path.name)
            if not found:
                continue
            if found["spoken"]:
                raw = found["language"] or "en"
                language = normalise_language(raw)
                if language in languages:
                    text = texts.get(language) or concept
                    yield _Recording(path, "name", concept, language, text, f"tuxpaint-{raw.lower()}")
            elif not stamp.startswith("symbols/"):  # beside letters and numbers the "sound" is speech
                yield _Recording(path, "sound", concept, "und", concept, "tuxpaint-sound")


def _ambiguous(recordings: list[_Recording], keys: list[str]) -> set[object]:
    """Fingerprints and phrases that stand for more than one concept."""
    concepts: dict[object, set[str]] = {}
    for key, recording in zip(keys, recordings, strict=True):
        for identity in (key, recording.phrase):
            concepts.setdefault(identity, set()).add(recording.concept)
    return {identity for identity, named in concepts.items() if len(named) > 1}


def stamp_clips(
    stamps_root: str | Path,
    matches: Mapping[str, str],
    config: DataConfig,
    skipped: Counter[str] | None = None,
) -> Iterator[tuple[ClipMeta, np.ndarray]]:
    """Real recordings of the matched stamps: spoken descriptions ("name") and real sounds ("sound").

    `matches` maps a stamp (path under `stamps_root`, no extension) to its concept. Yields metadata and int16 [n] at
    16 kHz, trimmed, in a fixed order. `skipped` counts what was left out: "too long" (over `config.clip_max_s` after
    trimming), "silent", "duplicate" (one recording beside two stamps of a concept) and "ambiguous" (one recording or
    one phrase for two concepts). The split of a recording hangs on its sound, not on its file's name.
    """
    skipped = Counter() if skipped is None else skipped
    recordings = list(_stamp_recordings(Path(stamps_root), matches, set(config.languages)))
    keys = [_fingerprint(recording.path) for recording in recordings]
    ambiguous = _ambiguous(recordings, keys)
    seen: set[object] = set()
    for key, recording in zip(keys, recordings, strict=True):
        if {key, recording.phrase} & ambiguous:
            skipped["ambiguous"] += 1
            continue
        decoded = decode(recording.path)
        copy = (recording.voice, *recording.phrase, len(decoded))  # encoded twice, a recording is as long to the sample
        if {key, copy} & seen:
            skipped["duplicate"] += 1
            continue
        seen |= {key, copy}
        samples = trim(decoded)
        if fits(samples, config, skipped):
            split = "train" if recording.kind == "sound" else clip_name_split(recording.concept, key, config.seed)
            yield _real(recording, split, len(samples)), samples


def _real(recording: _Recording, split: str, num_samples: int) -> ClipMeta:
    return ClipMeta(
        kind=recording.kind,
        concept=recording.concept,
        digit=None,
        language=recording.language,
        text=recording.text,
        voice=recording.voice,
        real=True,
        split=split,
        num_samples=num_samples,
    )


def fits(samples: np.ndarray, config: DataConfig, skipped: Counter[str]) -> bool:
    """Whether a trimmed clip holds sound of at most `config.clip_max_s`; if not, counts why."""
    if not len(samples):
        skipped["silent"] += 1
    elif len(samples) > config.clip_max_s * SAMPLE_RATE:
        skipped["too long"] += 1
    else:
        return True
    return False


def digit_clips(
    stamps_root: str | Path,
    asterisk_roots: Mapping[str, str | Path],
    config: DataConfig,
    skipped: Counter[str] | None = None,
) -> Iterator[tuple[ClipMeta, np.ndarray]]:
    """Real spoken digits: the stamps' in all their languages ("train"), the studio voices' ("speaker").

    `asterisk_roots` maps a language to its extracted package, which holds one `digits` folder. The text of a digit clip
    is its numeral. Yields metadata and int16 [n] at 16 kHz, trimmed; `skipped` counts as in `stamp_clips`.
    """
    skipped = Counter() if skipped is None else skipped
    seen: set[str] = set()
    for digit, language, voice, split, path in (*_stamp_digits(Path(stamps_root)), *_studio_digits(asterisk_roots)):
        key = _fingerprint(path)
        if key in seen:
            skipped["duplicate"] += 1
            continue
        seen.add(key)
        samples = trim(decode(path))
        if fits(samples, config, skipped):
            meta = ClipMeta(
                kind="digit",
                concept=None,
                digit=digit,
                language=language,
                text=str(digit),
                voice=voice,
                real=True,
                split=split,
                num_samples=len(samples),
            )
            yield meta, samples


def _stamp_digits(stamps_root: Path) -> Iterator[tuple[int, str, str, str, Path]]:
    folder = stamps_root / "symbols" / "math"
    if not folder.is_dir():
        raise ValueError(f"stamps folder {folder} is missing: {_ADVICE}")
    pattern = re.compile(rf"(?P<digit>[0-9])(?:_desc)?(?:_(?P<language>{_LANGUAGE}))?\.ogg")
    for path in sorted(folder.iterdir()):
        found = pattern.fullmatch(path.name)
        if found and found["language"] != "desc":
            raw = found["language"] or "en"
            yield int(found["digit"]), normalise_language(raw), f"tuxpaint-{raw.lower()}", "train", path


def _studio_digits(asterisk_roots: Mapping[str, str | Path]) -> Iterator[tuple[int, str, str, str, Path]]:
    for language, root in sorted(asterisk_roots.items()):
        zeros = sorted(Path(root).rglob("digits/0.wav"))
        if not zeros:
            raise ValueError(f"no spoken digits ({language}) under {root}: {_ADVICE}")
        for digit in range(10):
            yield digit, language, f"asterisk-{language}", "speaker", zeros[0].parent / f"{digit}.wav"
