"""From a folder of weights to something that answers."""

from __future__ import annotations

import errno
from pathlib import Path

import sentencepiece

from geminid.interop.weights import TOKENIZER, load_model
from geminid.model.decoder import Decoder
from geminid.model.stored import Bits, prepared
from geminid.serve.chat import Chat, Pieces
from geminid.serve.engine import Engine, Options


def open_chat(folder: Path, bits: int | None, options: Options) -> Chat:
    """The text model in a folder that `geminid import` wrote, ready to talk; bits: 8, 4, or None: weights as they are.

    FileNotFoundError or ValueError, one line, where the folder does not hold one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; `geminid import` writes one", str(folder))
    if bits not in (None, 8, 4):
        raise ValueError(f"weights of {bits} bits are not known; use 8 or 4, or leave it out")
    path = folder / TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no tokenizer here; a chat needs a SentencePiece model", str(path))
    try:
        pieces = Pieces(sentencepiece.SentencePieceProcessor(model_file=str(path)))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model; import the weights again") from error
    decoder = load_model(folder)
    if not isinstance(decoder, Decoder):
        raise ValueError(f"{folder} holds a model with pictures; a chat needs a text model (gemma3_text)")
    model = prepared(decoder, Bits.all(bits), rows=1)
    return Chat(Engine(model, decoder.embedding.shape[0], pieces.stops), pieces, options)
