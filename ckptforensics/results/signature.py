"""The result of `sign`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import (
    Direction,
    Document,
    Finite,
    FitOptions,
    Frozen,
    IndexedValue,
    ModelRecord,
    Skipped,
)


class LayerSignature(Frozen):
    """Leading singular values of L, the gap between them, and the top of u1.

    `residual` is |L'u1 - s1 v1| / s1 as measured; `direction_top` lists the largest components.
    `initial_norm` and `typical_norm` are the norms after the layer of the begin-of-sequence token
    and, in the median, of other single tokens, each alone at position 0; null where none was
    followed so far, and in signatures before 1.3.
    """

    layer: int
    prefix: str
    sigma: tuple[Finite, Finite]
    gap: Finite
    residual: Finite
    direction_top: tuple[IndexedValue, ...]
    initial_norm: Finite | None = None
    typical_norm: Finite | None = None


class SignatureDocument(Document):
    """The result of `sign`."""

    schema_version: Literal["1.3"] = "1.3"
    kind: Literal["signature"] = "signature"
    fingerprint: str | None
    model: ModelRecord
    fit: Literal["canonical", "paper", "sampled"]
    fit_options: FitOptions | None = None
    layers: tuple[LayerSignature, ...]
    direction: Direction
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    skipped: tuple[Skipped, ...] = ()
