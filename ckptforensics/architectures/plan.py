"""What a family and a checkpoint make together: the tensors of every block, and the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ckptforensics.architectures.schema import Family, NormPosition, Residual, Role, Routing

FamilySource = Literal["config", "gguf", "inferred"]
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; `head_dim` is that of the value heads. 0 heads: none are analysed."""

    hidden_size: int
    num_layers: int
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True)
class WeightRef:
    """The stored tensors of one role.

    Attributes
    ----------
    weight, bias : tensor names; no bias is None
    transposed : stored (in, out)
    ranges : output rows that belong to the role, None for all
    step : 2 with `start` 0 or 1 takes every second output row
    start : see `step`
    expert : index on the first axis of a stacked tensor, None for tensors of their own
    expert_rows : rows that the stacked tensor, seen as a matrix, holds for each expert
    split_heads : the stored tensor's last two axes are one axis of the matrix
    input_scale : tensor that multiplies the input, None for none
    """

    weight: str
    bias: str | None
    transposed: bool = False
    ranges: Ranges | None = None
    step: int = 1
    start: int = 0
    expert: int | None = None
    expert_rows: int = 0
    split_heads: bool = False
    input_scale: str | None = None

    def names(self) -> Iterator[str]:
        """All tensors of the role."""
        yield from (n for n in (self.weight, self.bias, self.input_scale) if n is not None)


@dataclass(frozen=True)
class RoutingPlan:
    """How a router weighs the experts of a layer; see `MoeSpec`."""

    routing: Routing
    num_experts: int
    top_k: int
    renormalise: bool
    scale: float
    groups: int
    groups_kept: int
    jitter: float


@dataclass(frozen=True)
class LayerPlan:
    """The tensors of one block.

    Attributes
    ----------
    prefix : of its tensors
    refs : role to tensors
    experts : role to tensors, of each expert
    mixer : why its attention or other mixer is not analysed; None where it is, or there is none
    skipped : why nothing of the layer is analysed, None where something is
    """

    prefix: str
    refs: Mapping[Role, WeightRef]
    experts: tuple[Mapping[Role, WeightRef], ...] = ()
    mixer: str | None = None
    skipped: str | None = None

    @property
    def gap(self) -> str | None:
        """Why no token can be rolled through the layer, None if one can."""
        return self.skipped or self.mixer

    def names(self) -> Iterator[tuple[str, Role]]:
        """The tensors of all roles, with each role."""
        for refs in (self.refs, *self.experts):
            for role, ref in refs.items():
                yield from ((name, role) for name in ref.names())


@dataclass(frozen=True)
class EmbeddingRefs:
    """Tensors that make the residual stream before the first block; see `EmbeddingSpec`."""

    tokens: str
    positions: str | None = None
    position_row: int = 0
    token_types: str | None = None
    norm: str | None = None
    norm_bias: str | None = None
    projection: str | None = None

    def names(self) -> Iterator[tuple[str, str]]:
        """Tensor and what it is used as."""
        for name, role in (
            (self.tokens, "embedding"),
            (self.positions, "positions"),
            (self.token_types, "token types"),
            (self.norm, "embedding norm"),
            (self.norm_bias, "embedding norm"),
            (self.projection, "embedding projection"),
        ):
            if name is not None:
                yield name, role


@dataclass(frozen=True)
class Architecture:
    """How to read a checkpoint as a stack of residual blocks.

    Attributes
    ----------
    family, source : the family and how it was found
    sizes : widths and counts
    residual, norm_position : of the blocks
    eps, activation, gain_offset : of norms and FFN
    embedding : None where the files lack it
    embedding_scale, attention_scale, ffn_scale, gate_scale : factors, see `Family`
    value_clip : bound on the values' size, None for none
    ffn_clamp : bound of gate and up in gpt-oss's kind of FFN, None for other kinds
    latent_eps : epsilon of the norm inside MLA
    sink_scale : factor on the scores that compete with a learned sink
    routing : of the experts, None without experts
    layers : the tensors of each block
    unused : tensor to the reason why it is not read
    bos_token_id : None if the checkpoint names none
    notes : what was assumed because the checkpoint does not say it
    """

    family: Family
    source: FamilySource
    sizes: Sizes
    residual: Residual
    norm_position: NormPosition
    eps: float
    activation: str
    gain_offset: float
    embedding: EmbeddingRefs | None
    embedding_scale: float
    attention_scale: float
    ffn_scale: float
    gate_scale: float
    value_clip: float | None
    ffn_clamp: float | None
    latent_eps: float
    sink_scale: float
    routing: RoutingPlan | None
    layers: tuple[LayerPlan, ...]
    unused: Mapping[str, str]
    bos_token_id: int | None
    notes: tuple[str, ...]

    @property
    def analysed(self) -> tuple[int, ...]:
        """Layers, from 1, of which something is analysed."""
        return tuple(n for n, plan in enumerate(self.layers, 1) if plan.skipped is None)

    @property
    def first_gap(self) -> int | None:
        """First layer, from 1, through which no token can be rolled; None if there is none."""
        return next((n for n, plan in enumerate(self.layers, 1) if plan.gap is not None), None)

    @property
    def used(self) -> Mapping[str, str]:
        """Tensor to the role or roles it plays."""
        roles: dict[str, str] = {}

        def add(name: str, role: str) -> None:
            if role not in roles.get(name, "").split(", "):
                roles[name] = f"{roles[name]}, {role}" if name in roles else role

        for plan in self.layers:
            for name, role in plan.names() if plan.skipped is None else ():
                add(name, role)
        for name, use in self.embedding.names() if self.embedding else ():
            add(name, use)
        return roles
