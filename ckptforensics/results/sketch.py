"""The result of `sketch`: what a model is found by among many."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped

Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=100_000)]


class SketchedTokens(Frozen):
    """How alike the embeddings of some tokens are, in no basis.

    `by` says what names the tokens: their `strings`, or their `ids` only. `names` are their digests
    in increasing order (32-bit, little-endian, base64). `likeness` is the part of the ridge
    projection onto the embeddings' columns that lies above the diagonal, row by row, as 8-bit
    integers in units of `unit` (base64).
    """

    by: Literal["strings", "ids"]
    count: int = Field(ge=2, le=256)
    names: Base64
    likeness: Base64
    unit: Finite


class SketchedHeads(Frozen):
    """Log singular values of W_O W_V of heads, at some of their ranks, less their mean.

    `count` heads are kept of the `total` that the model has; `values` are 16-bit integers
    (little-endian, base64), (count, ranks) in units of `unit`.
    """

    count: int = Field(ge=1, le=512)
    total: int
    ranks: Literal[16]
    values: Base64
    unit: Finite


class Sketched(Frozen):
    """What models are found by; `heads` is null where there are none that are looked at."""

    tokens: tuple[SketchedTokens, ...]
    heads: SketchedHeads | None


class SketchDocument(Document):
    """The result of `sketch`.

    `found` is what models are found by, `skipped` says what of them is missing and
    why. `bytes_read` are those of weights, `requests` how often a server was asked for ranges of
    weights and tokenizer (null where they are here), `seconds` what it took.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["sketch"] = "sketch"
    model: ModelRecord
    found: Sketched
    skipped: tuple[Skipped, ...] = ()
    bytes_read: int
    requests: int | None = None
    seconds: Finite
