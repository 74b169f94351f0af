"""One residual block as arrays, and the stream of all blocks of a checkpoint.

A block is what every later stage sees: norms, value and output maps, FFN and how their results
are added. Nothing here or later knows tensor names or families.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ckptforensics.architectures import LayerPlan, Role, RoutingPlan, WeightRef
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.parallel import in_threads

Floats = NDArray[np.float32]

# Bytes that the routed experts of one block may take.
EXPERT_MEMORY = 4 << 30
_FLOAT_BYTES = 4


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
    """y = weight x + bias; `weight` is (out, in), `bias` (out,) or None."""

    weight: Floats
    bias: Floats | None = None


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


def load_block(checkpoint: Checkpoint, layer: int, *, expert_memory: int = EXPERT_MEMORY) -> Block:
    """Read block `layer` (from 1) into memory as float32.

    Parameters
    ----------
    expert_memory : bytes that its routed experts and their linear fits may take; where they need
        more, each expert is read when it is used

    Raises
    ------
    NothingAnalysable
        if nothing of the block is analysed.
    NotFinite
        if a weight of the block is NaN or infinite.
    TensorError
        if an element type cannot be decoded.
    """
    plan = checkpoint.architecture.layers[layer - 1]
    if plan.skipped is not None:
        raise NothingAnalysable(
            f"layer {layer} ({plan.prefix.rstrip('.')}) has nothing to analyse: {plan.skipped}",
            path=checkpoint.source.path,
        )
    if checkpoint.source.remote is not None:  # all ranges together, not one tensor after another
        checkpoint.store.prefetch(_names(checkpoint, plan, expert_memory))
    reader = _BlockReader(checkpoint, plan)
    return Block(
        layer=layer,
        prefix=plan.prefix.rstrip("."),
        residual=checkpoint.architecture.residual,
        attention=reader.attention() if "value" in plan.refs else None,
        ffn=reader.moe(hold=_hold(checkpoint, plan, expert_memory))
        if plan.experts
        else reader.ffn(),
        mixer=plan.mixer,
    )


def stream_blocks(
    checkpoint: Checkpoint,
    layers: Sequence[int] | None = None,
    *,
    expert_memory: int = EXPERT_MEMORY,
) -> Iterator[Block]:
    """Yield the blocks in order; one is in memory at a time if the caller lets go of the last.

    While the caller computes, the next block's bytes are fetched, or read into the operating
    system's cache. Without `layers`, those of which something is analysed; NothingAnalysable if
    there are none.
    """
    architecture = checkpoint.architecture
    wanted = layers or architecture.analysed
    if not wanted:
        raise NothingAnalysable(
            f"none of the {len(architecture.layers)} layers has anything to analyse: "
            f"{architecture.layers[0].skipped}",
            path=checkpoint.source.path,
        )
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        pending: Future[None] | None = None
        try:
            for layer, following in zip(wanted, [*wanted[1:], None], strict=True):
                block = load_block(checkpoint, layer, expert_memory=expert_memory)
                if following is not None:
                    names = _names(checkpoint, architecture.layers[following - 1], expert_memory)
                    pending = reader.submit(checkpoint.store.prefetch, names)
                yield block
                del block
                if pending is not None:
                    pending.result()
        except BaseException:
            # The caller failed, left or was interrupted: nobody waits for the next block.
            remote = checkpoint.source.remote
            while remote is not None and pending is not None and not pending.done():
                remote.cancel()  # again and again: the reader may not have begun to fetch
                wait([pending], timeout=0.1)
            raise


def _names(checkpoint: Checkpoint, plan: LayerPlan, expert_memory: int) -> list[str]:
    """The tensors of a block that are read whole."""
    read = plan if _hold(checkpoint, plan, expert_memory) else replace(plan, experts=())
    return sorted({name for name, _ in read.names()})


def _hold(checkpoint: Checkpoint, plan: LayerPlan, expert_memory: int) -> bool:
    """Whether the experts and a third more, for their fits, take no more than this."""
    names = {ref.weight for refs in plan.experts for ref in refs.values()}
    elements = sum(math.prod(checkpoint.store.info(name).shape) for name in names)
    return elements * _FLOAT_BYTES * 4 <= 3 * expert_memory


def memory_needed(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes that the largest block takes without its routed experts, and that one expert takes.

    As float32 and with its linear fit, which is no larger than a third of it. Tensors that several
    roles share are counted for each.
    """

    def needed(refs: Mapping[Role, WeightRef], share: int) -> int:
        sizes = [math.prod(checkpoint.store.info(ref.weight).shape) for ref in refs.values()]
        stacked = [ref.expert is not None for ref in refs.values()]
        elements = sum(n // share if s else n for n, s in zip(sizes, stacked, strict=True))
        return elements * _FLOAT_BYTES * 4 // 3

    plans = checkpoint.architecture.layers
    experts = ((refs, len(plan.experts)) for plan in plans for refs in plan.experts[:1])
    return (
        max((needed(plan.refs, 1) for plan in plans), default=0),
        max((needed(refs, count) for refs, count in experts), default=0),
    )


class _StreamedExperts(Sequence[Ffn]):
    """Experts that are read when they are used, and not kept."""

    def __init__(
        self,
        read: Callable[[Mapping[Role, WeightRef]], Ffn],
        refs: Sequence[Mapping[Role, WeightRef]],
    ) -> None:
        self._read = read
        self._refs = refs

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: Any) -> Any:
        return self._read(self._refs[index])


class _BlockReader:
    """Reads the weights of one block by their roles, its matrices on all cores."""

    def __init__(self, checkpoint: Checkpoint, plan: LayerPlan) -> None:
        self.architecture = checkpoint.architecture
        self.store = checkpoint.store
        self.refs = plan.refs
        sizes = {
            role: math.prod(self.store.info(ref.weight).shape)
            for role, ref in plan.refs.items()
            if len(self.store.info(ref.weight).shape) > 1
        }
        # Large ones first, so that the cores finish together.
        roles = sorted(sizes, key=lambda role: -sizes[role])
        read = in_threads(lambda role: self.read_linear(plan.refs[role]), roles)
        self.matrices = dict(zip(roles, read, strict=True))
        self.expert_refs = plan.experts
        self.hidden_size = checkpoint.architecture.sizes.hidden_size

    def attention(self) -> Attention:
        """The attention branch."""
        architecture = self.architecture
        mla = "latent" in self.refs
        sink = None
        if "sinks" in self.refs:
            scores = self.store.read(self.refs["sinks"].weight).reshape(-1)
            query, key = self.linear("query"), self.linear("key")
            sink = Sink(query, key, scores, architecture.sink_scale)
        before, after = self.norms("attention")
        return Attention(
            norm=before,
            value=self.linear("value"),
            output=self.linear("output"),
            head_dim=architecture.sizes.head_dim,
            repeats=1 if mla else architecture.sizes.num_heads // architecture.sizes.num_kv_heads,
            latent=self.optional("latent"),
            latent_norm=self.norm("latent_norm", architecture.latent_eps),
            gate=self.optional("attention_gate"),
            sink=sink,
            clip=architecture.value_clip,
            post_norm=self.norm("attention_post_norm"),
            after_norm=after,
            scale=self.scale("attention_scale", architecture.attention_scale),
        )

    def ffn(self) -> Ffn:
        """The dense FFN branch."""
        before, after = self.norms("ffn")
        gate = self.optional("gate")
        if gate is not None and (factor := np.float32(self.architecture.gate_scale)) != 1:
            bias = None if gate.bias is None else gate.bias * factor
            gate = Linear(gate.weight * factor, bias)
        return Ffn(
            norm=before,
            gate=gate,
            up=self.linear("up"),
            down=self.linear("down"),
            activation=self.architecture.activation,
            down_name=self.refs["down"].weight,
            clamp=self.architecture.ffn_clamp,
            output_gate=self.optional("ffn_output_gate"),
            post_norm=self.norm("ffn_post_norm"),
            after_norm=after,
            scale=self.scale("ffn_scale", self.architecture.ffn_scale),
        )

    def moe(self, *, hold: bool) -> Moe:
        """The branch of routed and shared experts; the routed ones in memory with `hold`."""
        assert self.architecture.routing is not None
        before, after = self.norms("ffn")
        shared = None
        if "shared_down" in self.refs:
            shared = self.expert(self.refs, "shared")
        return Moe(
            norm=before,
            router=self.linear("router"),
            correction=self.vector("router_correction"),
            expert_scale=self.vector("router_scale"),
            plan=self.architecture.routing,
            experts=tuple(in_threads(self.routed, self.expert_refs))
            if hold
            else _StreamedExperts(self.routed, self.expert_refs),
            shared=shared,
            shared_router=self.optional("shared_router"),
            post_norm=self.norm("ffn_post_norm"),
            after_norm=after,
            scale=self.scale("ffn_scale", self.architecture.ffn_scale),
        )

    def routed(self, refs: Mapping[Role, WeightRef]) -> Ffn:
        """One routed expert."""
        return self.expert(refs, "expert")

    def expert(self, refs: Mapping[Role, WeightRef], kind: Literal["expert", "shared"]) -> Ffn:
        """One expert, whose norm is that of the branch."""
        names: tuple[Role, Role, Role] = (
            ("expert_gate", "expert_up", "expert_down")
            if kind == "expert"
            else ("shared_gate", "shared_up", "shared_down")
        )
        gate, up, down = (refs.get(name) for name in names)
        assert up is not None
        assert down is not None
        return Ffn(
            norm=None,
            gate=None if gate is None else self.read_linear(gate),
            up=self.read_linear(up),
            down=self.read_linear(down),
            activation=self.architecture.activation,
            down_name=down.weight if down.expert is None else f"{down.weight}[{down.expert}]",
            clamp=self.architecture.ffn_clamp,
        )

    def norms(self, branch: Literal["attention", "ffn"]) -> tuple[Norm | None, Norm | None]:
        """Norm before the branch, and after its result was added."""
        norm_role: Role = "attention_norm" if branch == "attention" else "ffn_norm"
        after_role: Role = "attention_after_norm" if branch == "attention" else "ffn_after_norm"
        norm, after = self.norm(norm_role), self.norm(after_role)
        spec = self.architecture.family.norm
        if norm is None and not spec.affine:
            ones = np.ones(self.hidden_size, np.float32)
            norm = Norm(spec.kind, ones, None, self.architecture.eps)
        if self.architecture.norm_position == "after":
            return None, norm
        return norm, after

    def norm(self, role: Role, eps: float | None = None) -> Norm | None:
        """A norm, None where the block has none; `eps` where it is not that of the others."""
        ref = self.refs.get(role)
        if ref is None:
            return None
        gain = self.store.read(ref.weight).reshape(-1)
        offset = self.architecture.gain_offset
        return Norm(
            kind=self.architecture.family.norm.kind,
            gain=gain + np.float32(offset) if offset else gain,
            bias=None if ref.bias is None else self.store.read(ref.bias).reshape(-1),
            eps=self.architecture.eps if eps is None else eps,
        )

    def scale(self, role: Role, factor: float) -> Floats | float | None:
        """Factor on what the branch adds."""
        ref = self.refs.get(role)
        if ref is None:
            return None if factor == 1 else factor
        return self.store.read(ref.weight).reshape(-1) * np.float32(factor)

    def vector(self, role: Role) -> Floats | None:
        """A vector, None where the block has none."""
        ref = self.refs.get(role)
        return None if ref is None else self.store.read(ref.weight).reshape(-1)

    def optional(self, role: Role) -> Linear | None:
        """A linear map, None where the block has none."""
        return self.linear(role) if role in self.refs else None

    def linear(self, role: Role) -> Linear:
        """A linear map as (out, in), with the share of a fused tensor that belongs to the role."""
        # What is stored as a vector, such as a router of one row, is not among the matrices.
        found = self.matrices.pop(role, None)
        return self.read_linear(self.refs[role]) if found is None else found

    def read_linear(self, ref: WeightRef) -> Linear:
        """A linear map as (out, in); see `WeightRef`."""
        store = self.store
        bias = None if ref.bias is None else store.read(ref.bias)
        if ref.expert is not None:
            begin = ref.expert * ref.expert_rows
            weight = store.read_rows(ref.weight, begin, begin + ref.expert_rows)
            experts = self.architecture.routing.num_experts if self.architecture.routing else 1
            bias = None if bias is None else bias.reshape(experts, -1)[ref.expert]
        elif ref.ranges is not None and not ref.transposed:
            weight = np.concatenate([store.read_rows(ref.weight, a, b) for a, b in ref.ranges])
        else:
            weight = np.atleast_2d(store.read(ref.weight))
        if ref.split_heads:
            weight = weight.reshape(weight.shape[0], -1)
        whole = ref.expert is not None or ref.transposed or ref.ranges is None
        if ref.transposed:
            weight = weight.T
        if ref.ranges is not None:
            if whole:
                weight = np.concatenate([weight[a:b] for a, b in ref.ranges])
            if bias is not None:
                bias = np.concatenate([bias.reshape(-1)[a:b] for a, b in ref.ranges])
        if ref.step != 1:
            weight = weight[ref.start :: ref.step]
            bias = None if bias is None else bias.reshape(-1)[ref.start :: ref.step]
        if ref.input_scale is not None:
            weight = weight * store.read(ref.input_scale).reshape(-1)
        return Linear(np.ascontiguousarray(weight), None if bias is None else bias.reshape(-1))
