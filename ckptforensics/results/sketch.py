"""The result of `sketch`: what a model is found by among many."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped

Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=100_000)]
# What an integer of 8 or 16 bits stands for; 1 where all are zero.
Unit = Annotated[Finite, Field(gt=0, le=1)]


class SketchedTokens(Frozen):
    """How alike the embeddings of some tokens are, in no basis.

    `by` says what names the tokens: their `strings`, or their `ids` only. `names` are their digests
    in increasing order (32-bit, little-endian, base64). `likeness` is the part of the ridge
    projection onto the embeddings' columns that lies above the diagonal, row by row, as 8-bit
    integers in units of `unit` (base64).
    """

    by: Literal["strings", "ids"]
    count: int = Field(ge=48, le=256)
    names: Base64
    likeness: Base64
    unit: Unit


class SketchedSpectra(Frozen):
    """Log singular values, less their mean.

    Those of `count` are kept of the `total` that the model has; `values` are 16-bit integers
    (little-endian, base64), (count, ranks) in units of `unit`.
    """

    count: int = Field(ge=1)
    total: int = Field(ge=1)
    ranks: Literal[16]
    values: Base64
    unit: Unit

    @model_validator(mode="after")
    def _kept_are_of_all(self) -> Self:
        if self.total < self.count:
            raise ValueError(f"'count' is {self.count} of a 'total' of {self.total}")
        return self


class SketchedHeads(SketchedSpectra):
    """Of heads: W_O W_V of each, at some of its ranks."""

    count: int = Field(ge=1, le=512)


class SketchedAttention(SketchedSpectra):
    """Of layers: leading ones of W_O W_V of all heads together, as shares of their spread."""

    count: int = Field(ge=1, le=16)


class Sketched(Frozen):
    """What models are found by.

    `heads` and `attention` are null where there are none that are looked at; sketches before
    version 1.1 have no `attention`.
    """

    tokens: tuple[SketchedTokens, ...]
    heads: SketchedHeads | None
    attention: SketchedAttention | None = None

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        if len({part.by for part in self.tokens}) < len(self.tokens):
            raise ValueError("'tokens' has one way to name them twice")
        return self


class SketchDocument(Document):
    """The result of `sketch`.

    `found` is what models are found by, `skipped` says what of them is missing and
    why. `bytes_read` are those of weights, `requests` how often a server was asked for ranges of
    weights and tokenizer (null where they are here), `seconds` what it took.
    """

    schema_version: Literal["1.1"] = "1.1"
    kind: Literal["sketch"] = "sketch"
    model: ModelRecord
    found: Sketched
    skipped: tuple[Skipped, ...] = ()
    bytes_read: int = Field(ge=0)
    requests: int | None = Field(default=None, ge=0)
    seconds: Annotated[Finite, Field(ge=0)]

    @model_validator(mode="after")
    def _model_has_sizes(self) -> Self:
        for name, least in (("hidden_size", 1), ("num_layers", 0)):
            if getattr(self.model, name) < least:
                raise ValueError(f"'model.{name}' is {getattr(self.model, name)}")
        return self
