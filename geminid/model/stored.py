"""How a decoder's weights are kept for decoding: which bits, which layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax import Array

from geminid.model.decoder import Decoder
from geminid.model.generation import Unstacked
from geminid.model.matrices import Table, Transposed
from geminid.model.quantised import Quantised, QuantisedTable
from geminid.model.screened import ScreenedTable


@dataclass(frozen=True)
class Bits:
    """Bits of a weight, 8 or 4, of each kind of module; None: as it is."""

    attention: int | None = None
    mlp: int | None = None
    embedding: int | None = None

    @classmethod
    def all(cls, bits: int | None) -> Bits:
        """The same for all; the embedding, whose errors reach every score, in no fewer than 8."""
        return cls(bits, bits, None if bits is None else 8)


def prepared(decoder: Decoder, bits: Bits, rows: int) -> Unstacked:
    """The decoder for decoding `rows` rows at once: one row reads a weight fastest by columns, several by rows."""

    def store(name: str, weight: Array) -> Any:
        wanted = bits.attention if name.startswith("attention") else bits.mlp
        if wanted is not None:
            return Quantised.of(weight, wanted)
        return weight if rows == 1 else Transposed.of(weight)

    def table(embedding: Array) -> Table:
        if bits.embedding is not None:
            return QuantisedTable.of(embedding, bits.embedding)
        return ScreenedTable.of(embedding)

    return Unstacked(decoder, store, table)
