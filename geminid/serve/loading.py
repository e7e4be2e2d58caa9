"""From a folder of weights to something that answers."""

from __future__ import annotations

import errno
from pathlib import Path

from geminid.interop.folder import read_object
from geminid.interop.weights import TOKENIZER, load_model
from geminid.model.decoder import Decoder
from geminid.model.stored import Bits, prepared
from geminid.serve.chat import Chat, Pieces
from geminid.serve.engine import Engine, Options
from geminid.tokens.ids import pieces_of

TEMPLATES = ("chat_template.jinja", "chat_template.json")


def has_chat_template(folder: Path) -> bool:
    """Whether the folder says how to talk to its model, as those of instruction-tuned models do."""
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and "chat_template" in read_object(config)


def open_chat(folder: Path, bits: int | None, options: Options, turns: bool | None = None) -> Chat:
    """The text model in a folder that `geminid import` wrote, ready to talk.

    bits: 8, 4, or None: weights as they are. turns: whether it is asked in Gemma's turns or goes on from a text; None:
    in turns where the folder has a chat template.

    FileNotFoundError or ValueError, one line, where the folder does not hold one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; `geminid import` writes one", str(folder))
    if bits not in (None, 8, 4):
        raise ValueError(f"weights of {bits} bits are not known; use 8 or 4, or leave it out")
    path = folder / TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no tokenizer here; a chat needs a SentencePiece model", str(path))
    pieces = Pieces(pieces_of(path), has_chat_template(folder) if turns is None else turns)
    decoder = load_model(folder)
    if not isinstance(decoder, Decoder):
        raise ValueError(f"{folder} holds a model with pictures; a chat needs a text model (gemma3_text)")
    model = prepared(decoder, Bits.all(bits), rows=1)
    return Chat(Engine(model, decoder.embedding.shape[0], pieces.stops), pieces, options)
