"""The result of `quant diff`: a quantized copy beside its source, matrix by matrix."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Name, Skipped


class RoundedTensor(Frozen):
    """A matrix of the copy beside the source's, both as float32.

    `tensor` is its name in the copy, `dtypes` are the encodings in source and copy. `error` is
    |copy - source| / |source|. `lattice` says on which grid the copy's values lie, `step` is the
    median distance of neighbouring levels and `within` the share of entries within half a step of
    the source's; null where no grid is found.
    """

    layer: int
    role: str
    tensor: Name
    dtypes: tuple[str, str]
    error: Finite
    lattice: str | None
    step: Finite | None
    within: Finite | None


class RoundedGroup(Frozen):
    """Matrices of one role, encoding and lattice: how many, and the smallest to largest error."""

    role: str
    dtype: str
    lattice: str | None
    count: int
    smallest: Finite
    median: Finite
    largest: Finite


class RoundedLayer(Frozen):
    """A layer: relative error of all its matrices together, and the role with the largest."""

    layer: int
    error: Finite
    worst: str
    worst_error: Finite


class QuantizationDiffDocument(Document):
    """The result of `quant diff`: `groups` and `layers` sum the `tensors` up."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["quantization-diff"] = "quantization-diff"
    source: ModelRecord
    quantized: ModelRecord
    error: Finite
    groups: tuple[RoundedGroup, ...]
    layers: tuple[RoundedLayer, ...]
    tensors: tuple[RoundedTensor, ...]
    skipped: tuple[Skipped, ...] = ()
