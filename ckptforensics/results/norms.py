"""The result of `norms`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import model_validator

from ckptforensics.results.records import Document, Finite, ModelRecord, Skipped


class Stage(NamedTuple):
    """Norms at one place of the network: before layer 1 (`layer` is None) or after a layer."""

    layer: int | None
    norms: tuple[float, ...]
    median: float

    @property
    def minimum(self) -> float:
        """Over the tokens."""
        return min(self.norms)

    @property
    def maximum(self) -> float:
        """Over the tokens."""
        return max(self.norms)


class NormsDocument(Document):
    """The result of `norms`: residual-stream norms of single tokens after each layer.

    `tokens` are ids, null for a random embedding; `embedding_norms` are the norms before layer 1;
    `median` is taken over the tokens, layer by layer.
    """

    schema_version: Literal["1.2"] = "1.2"
    kind: Literal["norms"] = "norms"
    model: ModelRecord
    attention: bool
    tokens: tuple[int | None, ...]
    embedding_norms: tuple[Finite, ...]
    norms: tuple[tuple[Finite, ...], ...]
    median: tuple[Finite, ...]
    skipped: tuple[Skipped, ...] = ()

    @model_validator(mode="after")
    def _one_table(self) -> NormsDocument:
        count = len(self.tokens)
        if not count or len(self.norms) != count or len(self.embedding_norms) != count:
            raise ValueError("tokens, norms and embedding_norms must have one entry a token")
        if any(len(row) != len(self.median) for row in self.norms):
            raise ValueError("norms and median must have one entry a layer")
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The norms of all tokens before layer 1 and after each layer, in order."""
        from statistics import median

        after = (
            Stage(layer, tuple(row[layer - 1] for row in self.norms), middle)
            for layer, middle in enumerate(self.median, 1)
        )
        return (Stage(None, self.embedding_norms, median(self.embedding_norms)), *after)
