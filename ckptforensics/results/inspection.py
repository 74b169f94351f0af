"""The result of `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

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


@dataclass(frozen=True)
class TensorUse:
    """All tensors of one role, or that are not read for one reason; one of the two is None.

    `dtypes` and `shapes` are the different ones, in the order of the tensors; `bytes` is the sum.
    """

    role: str | None
    skipped: str | None
    count: int
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: int


class InspectDocument(Document):
    """The result of `inspect`; of heads there are none, and no FFN width, if none are analysed.

    `metadata` is what the header of the first file says beside the tensors; of a long text or list
    its beginning and length.
    """

    schema_version: Literal["1.2"] = "1.2"
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
    metadata: dict[str, str | int | float | bool] = Field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def tensors_in(self, file: str) -> int:
        """Number of tensors that a file stores; a quantized weight is not one, its parts are."""
        made = {t.part_of for t in self.tensors}
        return sum(t.file == file for t in self.tensors if t.part_of or t.name not in made)

    @property
    def uses(self) -> tuple[TensorUse, ...]:
        """The tensors by what they are used for, those that are not read at the end.

        Stored parts of quantized weights are left out: the weights are there.
        """
        groups: dict[tuple[str | None, str | None], list[TensorRecord]] = {}
        for t in self.tensors:
            if t.part_of is None:
                # A tensor with a role is read, whatever else is said of it.
                key = (None, t.skipped) if t.role is None else (t.role, None)
                groups.setdefault(key, []).append(t)
        return tuple(
            TensorUse(
                role,
                skipped,
                len(members),
                tuple(dict.fromkeys(t.dtype for t in members)),
                tuple(dict.fromkeys(t.shape for t in members)),
                sum(t.bytes for t in members),
            )
            for (role, skipped), members in sorted(groups.items(), key=lambda g: g[0][0] is None)
        )
