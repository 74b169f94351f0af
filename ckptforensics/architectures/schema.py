"""The schema of a family's TOML file; unknown keys and impossible values are errors.

A family says where a checkpoint keeps the norms, the value and output maps of attention and the
FFN of each block, and how the block adds them to the residual stream. docs/families.md explains
every key with an example.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["attention_norm", "value", "output", "ffn_norm", "gate", "up", "down"]
Take = Literal["all", "qkv:v", "heads:v", "groups:v", "half:1", "half:2"]

REQUIRED_ROLES: frozenset[Role] = frozenset(
    {"attention_norm", "value", "output", "ffn_norm", "up", "down"}
)

# Why a tensor the family knows is not read. A tensor it does not know stops the analysis.
UNUSED_REASONS = MappingProxyType(
    {
        "scores": "attention scores only: a single token attends to itself with weight 1",
        "after": "after the last block",
        "buffer": "a constant, not a weight",
    }
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Frozen):
    """Where a role's weight lies inside a block; a bare string in TOML is its `name`.

    Attributes
    ----------
    name : tensor name after the block's prefix, without `.weight` or `.bias`
    transposed : stored (in, out) instead of (out, in)
    take : the share of a fused tensor's output rows that belongs to the role:
        `qkv:v` the values of q, k, v stacked by head counts; `heads:v` of [q, k, v] a head;
        `groups:v` of [q ..., k, v] a key-value group; `half:1`, `half:2` of two equal halves
    """

    name: str
    transposed: bool = False
    take: Take = "all"


class Layout(_Frozen):
    """Tensor names of one container convention.

    Attributes
    ----------
    prefixes : what may stand before every name, tried in this order
    embedding, positions : token embeddings and learned position embeddings
    block : prefix of a block, `{layer}` counts from 0
    tensors : weights of a block by role
    unused : glob of a full tensor name to the key of its reason in UNUSED_REASONS
    gain_offset : added to every stored norm gain
    """

    prefixes: tuple[str, ...] = ("",)
    embedding: str
    positions: str | None = None
    block: str
    tensors: dict[Role, TensorSpec]
    unused: dict[str, Literal["scores", "after", "buffer"]] = {}
    gain_offset: float = 0.0

    @field_validator("tensors", mode="before")
    @classmethod
    def _names_are_specs(cls, value: object) -> object:
        if isinstance(value, dict):
            return {k: {"name": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("block")
    @classmethod
    def _block_counts(cls, value: str) -> str:
        if value.count("{layer}") != 1:
            raise ValueError("must contain {layer} once")
        return value


class NormSpec(_Frozen):
    """Kind of the norm before each branch, and its epsilon where the configuration has none."""

    kind: Literal["rms", "layer"]
    eps: float = Field(gt=0)


class Family(_Frozen):
    """One family of architectures.

    Attributes
    ----------
    name : short name, also the file's
    description : what belongs to it
    model_types : values of `model_type` in `config.json`
    gguf_architectures : values of `general.architecture` in GGUF
    residual : `sequential` x + attention, then + FFN; `parallel` both from the same x
    norm : the norm before each branch
    activation : where the configuration names none
    hf, gguf : tensor names in the two conventions
    """

    name: str
    description: str
    model_types: tuple[str, ...] = ()
    gguf_architectures: tuple[str, ...] = ()
    residual: Literal["sequential", "parallel"] = "sequential"
    norm: NormSpec
    activation: str
    hf: Layout
    gguf: Layout | None = None

    @model_validator(mode="after")
    def _required_roles(self) -> Family:
        for layout in filter(None, (self.hf, self.gguf)):
            if missing := REQUIRED_ROLES - set(layout.tensors):
                raise ValueError(f"roles without a tensor: {', '.join(sorted(missing))}")
        return self


@cache
def families() -> Mapping[str, Family]:
    """All families by name, read from the package's TOML files and validated."""
    found: dict[str, Family] = {}
    for file in sorted(
        (resources.files("ckptforensics.architectures") / "families").iterdir(),
        key=lambda f: f.name,
    ):
        if not file.name.endswith(".toml"):
            continue
        family = Family.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        if file.name != f"{family.name}.toml":
            raise ValueError(f"{file.name} names the family {family.name!r}")
        for other in found.values():
            for mine, theirs in (
                (family.model_types, other.model_types),
                (family.gguf_architectures, other.gguf_architectures),
            ):
                if clash := set(mine) & set(theirs):
                    raise ValueError(f"{family.name} and {other.name} both claim {clash}")
        found[family.name] = family
    return MappingProxyType(found)
