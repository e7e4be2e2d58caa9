"""Training of the text pieces: the same sentences give the same bytes, and no text is out of reach."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from geminid.tokens.text import train_tokenizer

SENTENCES = ["a dog", "le chien", "собака", "ο σκύλος", "what came first?", "hot air balloon", "ice cream", "42"] * 5


def load(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_the_same_sentences_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        train_tokenizer((s for s in SENTENCES), 320, tmp_path / name / "text.model")
    assert (tmp_path / "a" / "text.model").read_bytes() == (tmp_path / "b" / "text.model").read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["text.model"]


def test_other_sentences_give_other_pieces(tmp_path):
    train_tokenizer(SENTENCES, 320, tmp_path / "a.model")
    train_tokenizer(["lorem ipsum dolor"] * 9, 320, tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() != (tmp_path / "b.model").read_bytes()


def test_what_the_pieces_are(tmp_path):
    train_tokenizer(SENTENCES, 320, tmp_path / "text.model")
    text = load(tmp_path / "text.model")
    pieces = [text.id_to_piece(i) for i in range(text.get_piece_size())]
    assert len(set(pieces)) == len(pieces) <= 320
    assert {p for i, p in enumerate(pieces) if text.is_byte(i)} == {f"<0x{b:02X}>" for b in range(256)}
    assert (text.bos_id(), text.eos_id(), text.pad_id(), text.unk_id()) == (-1, -1, -1, 0)
    assert not any(text.is_control(i) for i in range(len(pieces)))
    seen = set("".join(SENTENCES)) - {" "}
    assert seen <= set("".join(pieces)), "every character that was trained on has a piece"


def test_nothing_trained_on_needs_bytes(tmp_path):
    train_tokenizer(SENTENCES, 320, tmp_path / "text.model")
    text = load(tmp_path / "text.model")
    for sentence in SENTENCES:
        ids = text.encode(sentence)
        assert not any(text.is_byte(i) for i in ids)
        assert text.decode(ids) == sentence


def test_agrees_with_the_library_called_alone(tmp_path):
    train_tokenizer(SENTENCES, 320, tmp_path / "text.model")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=buffer,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    ours, plain = load(tmp_path / "text.model"), sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    for sentence in SENTENCES:
        assert ours.encode(sentence, out_type=str) == plain.encode(sentence, out_type=str)
