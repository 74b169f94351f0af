"""One residual block as arrays: what every later stage sees.

Norms, value and output maps, FFN and how their results are added. Nothing here or later knows
tensor names or families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckptforensics.architectures import RoutingPlan
from ckptforensics.arrays import Floats
from ckptforensics.compute.bf16 import Bf16Matrix

Matrix = Floats | Bf16Matrix


@dataclass(frozen=True)
class Norm:
    """RMSNorm g x / rms(x), or LayerNorm g (x - mean x) / std(x) + b.

    Attributes
    ----------
    kind : which of the two
    gain : (hidden_size,), as applied
    bias : (hidden_size,) or None
    eps : added to the mean square
    """

    kind: Literal["rms", "layer"]
    gain: Floats
    bias: Floats | None
    eps: float


@dataclass(frozen=True)
class Linear:
    """y = matrix x + bias; `matrix` is (out, in), `bias` (out,) or None."""

    matrix: Matrix
    bias: Floats | None = None

    @property
    def weight(self) -> Floats:
        """The matrix as an array, decoded at each access where it is kept as it is stored."""
        return self.matrix.decoded() if isinstance(self.matrix, Bf16Matrix) else self.matrix


@dataclass(frozen=True)
class Sink:
    """A learned score beside the token's own: its attention to itself is below 1.

    Attributes
    ----------
    query, key : (num_heads * width, hidden_size), (num_kv_heads * width, hidden_size)
    scores : (num_heads,) the sinks
    scale : factor on query times key, besides the usual one of their width
    """

    query: Linear
    key: Linear
    scores: Floats
    scale: float = 1.0


@dataclass(frozen=True)
class Attention:
    """What attention does to a single token: output(repeat(value(norm(x)))).

    Attributes
    ----------
    norm : before the value map; None where the block has none there
    value : (num_kv_heads * head_dim, hidden_size), or from the compressed vector with `latent`
    output : (hidden_size, num_heads * head_dim)
    head_dim : width of a value head
    repeats : query heads that share a value head
    latent, latent_norm : MLA's down map and norm before `value`
    gate : output gate, sigmoid of which multiplies the repeated values
    sink : learned sink
    clip : bound on the values' size
    post_norm : of the branch's result, before it is added
    after_norm : of the residual stream, after the result was added
    scale : factor on the result, a number or (hidden_size,)
    """

    norm: Norm | None
    value: Linear
    output: Linear
    head_dim: int
    repeats: int
    latent: Linear | None = None
    latent_norm: Norm | None = None
    gate: Linear | None = None
    sink: Sink | None = None
    clip: float | None = None
    post_norm: Norm | None = None
    after_norm: Norm | None = None
    scale: Floats | float | None = None


@dataclass(frozen=True)
class Ffn:
    """down(s(gate n) * up n), or down(s(up n)) without a gate; n = norm(x).

    Attributes
    ----------
    norm : before the FFN; None where the block has none there
    gate : (ffn_width, hidden_size) or None
    up : (ffn_width, hidden_size)
    down : (hidden_size, ffn_width)
    activation : name of s, as in the configuration
    down_name : name of the down projection's tensor, for reports
    clamp : bound of gpt-oss's variant: gate and up are clamped, up + 1 multiplies; None for others
    output_gate : (hidden_size, hidden_size), sigmoid of which multiplies what down returns
    post_norm, after_norm, scale : as in `Attention`
    """

    norm: Norm | None
    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    down_name: str
    clamp: float | None = None
    output_gate: Linear | None = None
    post_norm: Norm | None = None
    after_norm: Norm | None = None
    scale: Floats | float | None = None


@dataclass(frozen=True)
class Moe:
    """Experts weighed by a router, and experts that always act.

    Attributes
    ----------
    norm : before router and experts; the experts' own norm is None
    router : (num_experts, hidden_size)
    correction : (num_experts,) added to the scores for choosing experts only
    expert_scale : (num_experts,) learned factor on each expert's weight
    plan : how scores become weights
    experts : the routed experts; read anew at each access unless `held`
    shared : the expert that always acts, None for none
    shared_router : (1, hidden_size), sigmoid of which weighs the shared expert
    post_norm, after_norm, scale : as in `Attention`
    """

    norm: Norm | None
    router: Linear
    correction: Floats | None
    plan: RoutingPlan
    experts: Sequence[Ffn]
    shared: Ffn | None = None
    expert_scale: Floats | None = None
    shared_router: Linear | None = None
    post_norm: Norm | None = None
    after_norm: Norm | None = None
    scale: Floats | float | None = None

    @property
    def held(self) -> bool:
        """Whether all experts are in memory."""
        return isinstance(self.experts, tuple)


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes
    ----------
    layer : number from 1
    prefix : of its tensors
    residual : `sequential` x + attention, then + FFN; `parallel` both from the same x
    attention : None where there is none, or it is not analysed
    ffn : the FFN or the experts
    mixer : why the block's attention or other mixer is not analysed, None where nothing is left out
    """

    layer: int
    prefix: str
    residual: Literal["sequential", "parallel"]
    attention: Attention | None
    ffn: Ffn | Moe
    mixer: str | None = None
