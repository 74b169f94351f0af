"""The result of `inspect`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Name, Skipped


class TensorRecord(Frozen):
    """One tensor: its role, or the reason why it is not read.

    A quantized weight is one record of its logical shape, whose bytes are those of its parts; each
    stored part is another, `part_of` the weight, with the weight's role or reason.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Name
    role: str | None
    skipped: str | None
    part_of: str | None = None


class InspectDocument(Document):
    """The result of `inspect`; of heads there are none, and no FFN width, if none are analysed."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["inspect"] = "inspect"
    model: ModelRecord
    description: str
    residual: Literal["sequential", "parallel"]
    norm: Literal["rms", "layer"]
    epsilon: Finite
    activation: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int | None
    num_experts: int | None
    vocabulary_size: int | None
    bos_token_id: int | None
    parameters: int
    parameters_used: int
    tensors: tuple[TensorRecord, ...]
    skipped: tuple[Skipped, ...] = ()
