"""SentencePiece training (unigram, Kudo 2018) on a sample of the corpus."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


def train_tokenizer(sentences: Iterable[str], vocab_size: int, path: Path) -> None:
    """Write a SentencePiece model to `path`: byte fallback, no bos/eos/pad of its own, deterministic."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=buffer,
        vocab_size=vocab_size,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="nfkc",
        add_dummy_prefix=True,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        num_threads=1,  # the merge order of several threads is not fixed
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
