"""Writes the fixtures from transformers: `python -m tests.interop.make_fixtures`.

They prove parity where torch is not installed. Run it again only to change them; the same versions give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from geminid.model.vision import to_float
from tests.interop import peers

FOLDER = Path(__file__).parent / "fixtures"
AHEAD = {"conf_attention_context_right": 3, "conf_attention_chunk_size": 5, "conf_attention_logit_cap": 0.5}


def save(name: str, config: dict, arrays: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    """One file: arrays, weights under `weights/`, their config and versions as metadata."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    everything = arrays | {f"weights/{key}": value for key, value in weights.items()}
    path = FOLDER / f"{name}.safetensors"
    save_file(
        {key: np.ascontiguousarray(value) for key, value in everything.items()},
        path,
        {"about": json.dumps({"config": config, **versions})},  # one entry: several have no fixed order
    )
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def audio() -> None:
    """Three clips of 150 frames: whole, half, and one without its beginning; twice, the second time seeing ahead."""
    mels = np.random.default_rng(0).normal(size=(3, 150, 10)).astype(np.float32)
    at = np.arange(150)
    valid = np.stack([at >= 0, at < 75, at >= 40])
    encoder, ahead = peers.audio_encoder(), peers.audio_encoder(**AHEAD)
    soft, kept = peers.hear(encoder, mels, valid)
    arrays = {"mels": mels, "valid": valid, "soft": soft, "kept": kept, "soft_ahead": peers.hear(ahead, mels, valid)[0]}
    save("gemma3n_audio", encoder.config.to_dict() | {"ahead": AHEAD}, arrays, peers.weights(encoder))


def pictures_and_text() -> None:
    """Two rows with three pictures, the second row padded on the left; a picture is longer than the window."""
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (3, 40, 40, 3), np.uint8)
    ids = rng.integers(1, peers.PICTURE_ID, (2, 54))
    for row, start in ((0, 5), (0, 24), (1, 32)):
        ids[row, start : start + 16] = peers.PICTURE_ID
    present = np.arange(54) >= np.array([[0], [9]])
    model = peers.picture_text()
    states, soft = peers.see(model, np.array(to_float(pictures)))
    logits = peers.read(model, ids, present, np.array(to_float(pictures)))
    arrays = {"pictures": pictures, "ids": ids, "present": present, "states": states, "soft": soft, "logits": logits}
    save("gemma3_pictures", model.config.to_dict(), arrays, peers.weights(model))


def text() -> None:
    """Two rows, the second padded on the left, longer than the window; logits, and the loss's gradients."""
    ids = np.random.default_rng(2).integers(1, 64, (2, 24))
    present = np.arange(24) >= np.array([[0], [7]])
    model = peers.text(final_logit_softcapping=3.0, rope_scaling={"rope_type": "linear", "factor": 8.0})
    arrays = {"ids": ids, "present": present, "logits": peers.text_logits(model, ids, present)}
    gradients = {f"gradients/{name}": value for name, value in peers.text_gradients(model, ids, present).items()}
    save("gemma3_text", model.config.to_dict(), arrays | gradients, peers.weights(model))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    audio()
    pictures_and_text()
    text()
