"""`geminid tune`: a folder of weights in, a folder of tuned and merged weights out."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geminid.interop.folder import has_room, write_folder
from geminid.interop.table import export_module
from geminid.interop.text import TEXT
from geminid.interop.weights import TOKENIZER, load_model, open_source
from geminid.model.decoder import Decoder
from geminid.tune.captions import captions
from geminid.tune.lora import encoder_of, tune
from geminid.tune.requests import TuneConfig


def tune_folder(
    folder: Path, out: Path, texts: Any, config: TuneConfig, show: Callable[[int, float], None]
) -> dict[str, Any]:
    """Tunes the text model in `folder` on the data set's captions and writes it, merged, to `out`; the figures.

    ValueError or FileNotFoundError, one line, where `folder` holds no such model or `out` is there already.
    """
    has_room(out)
    if not (folder / TOKENIZER).is_file():
        raise FileNotFoundError(errno.ENOENT, "no tokenizer; `geminid import` writes a folder with one", str(folder))
    decoder = load_model(folder)
    if not isinstance(decoder, Decoder):
        raise ValueError(f"{folder} holds a model with pictures; tuning needs a text model (gemma3_text)")
    tuned, figures = tune(decoder, captions(texts), encoder_of(folder / TOKENIZER), config, show)
    if not math.isfinite(figures["loss_after"]):
        raise ValueError(f"the loss became {figures['loss_after']}: nothing is written; lower learning_rate or alpha")
    source = open_source(folder)
    write_folder(out, source.values, export_module(tuned, TEXT), others=source.others)
    return {"out": str(out), **figures}
