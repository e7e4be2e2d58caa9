"""A SentencePiece model from the list of its pieces (Kudo & Richardson 2018): what a GGUF file keeps of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

# classes that protobuf makes when the module is imported; checkers do not see them
ModelProto = vars(sentencepiece_model_pb2)["ModelProto"]
TrainerSpec = vars(sentencepiece_model_pb2)["TrainerSpec"]
Piece = ModelProto.SentencePiece
SPACE = "▁"


def sentencepiece_model(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    ids: Mapping[str, int | None],
    *,
    add_space: bool,
) -> bytes:
    """The model file: byte-pair merges in the order of the scores, bytes for what no piece covers.

    kinds: SentencePiece's own numbers (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte); ids: of
    unknown, bos, eos, padding; add_space: whether a text begins with a space. ValueError where they make no model.
    """
    model = ModelProto()
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
        kind = Piece.UNKNOWN if i == ids["unknown"] else kind
        # user-defined pieces are written with plain spaces there, and matched here after spaces are escaped
        text = piece.replace(" ", SPACE) if kind == Piece.USER_DEFINED else piece
        model.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = TrainerSpec.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = Piece.BYTE in kinds
    for name, theirs in (("unknown", "unk"), ("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        number = ids[name]
        setattr(trainer, f"{theirs}_id", -1 if number is None else number)
        if number is not None and 0 <= number < len(pieces):
            setattr(trainer, f"{theirs}_piece", pieces[number])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = add_space
    normalizer.remove_extra_whitespaces = False
    content = model.SerializeToString()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError(f"the pieces make no tokenizer ({' '.join(str(error).split())[:120]})") from None
    return content
