"""The weights of one block by their roles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ckptforensics.architectures import LayerPlan, Role, WeightRef
from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import in_threads
from ckptforensics.layers.views import Attention, Ffn, Linear, Moe, Norm, Sink
from ckptforensics.tensors import matrix_shape

# Matrices smaller than this are decoded: little is won by keeping routers as they are stored.
KEPT_ELEMENTS = 1 << 20


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


class BlockReader:
    """Reads the weights of one block by their roles, its matrices on all cores.

    With `keep`, large matrices stay in BF16 as they are stored, where that is possible.
    """

    def __init__(self, checkpoint: Checkpoint, plan: LayerPlan, *, keep: bool = False) -> None:
        self.keep = keep
        self.architecture = checkpoint.architecture
        self.store = checkpoint.store
        self.refs = plan.refs
        sizes = {
            role: math.prod(self.store.info(ref.weight).shape)
            for role, ref in plan.refs.items()
            if len(self.store.info(ref.weight).shape) > 1
        }
        kept = {role: self._kept(plan.refs[role]) for role in sizes}
        self.matrices = {role: linear for role, linear in kept.items() if linear is not None}
        # Large ones first, so that the cores finish together.
        roles = sorted((r for r in sizes if r not in self.matrices), key=lambda role: -sizes[role])
        read = in_threads(lambda role: self._decoded(plan.refs[role]), roles)
        self.matrices.update(zip(roles, read, strict=True))
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
        return self._kept(ref) or self._decoded(ref)

    def _decoded(self, ref: WeightRef) -> Linear:
        return Linear(self._weight(ref), self._bias(ref))

    def _kept(self, ref: WeightRef) -> Linear | None:
        """With the matrix as it is stored, None where it has to be decoded."""
        changed = ref.transposed or ref.step != 1 or ref.split_heads or ref.input_scale is not None
        if not self.keep or changed:
            return None
        columns, end = matrix_shape(self.store.info(ref.weight))
        begin = 0
        if ref.expert is not None:
            begin = ref.expert * ref.expert_rows
            end = begin + ref.expert_rows
        if ref.ranges is not None:
            if len(ref.ranges) > 1:
                return None
            begin, end = begin + ref.ranges[0][0], begin + ref.ranges[0][1]
        if (end - begin) * columns < KEPT_ELEMENTS:
            return None
        matrix = self.store.kept_rows(ref.weight, begin, end)
        return None if matrix is None else Linear(matrix, self._bias(ref))

    def _weight(self, ref: WeightRef) -> Floats:
        store = self.store
        if ref.expert is not None:
            begin = ref.expert * ref.expert_rows
            weight = store.read_rows(ref.weight, begin, begin + ref.expert_rows)
        elif ref.ranges is not None and not ref.transposed:
            weight = np.concatenate([store.read_rows(ref.weight, a, b) for a, b in ref.ranges])
        else:
            weight = np.atleast_2d(store.read(ref.weight))
        if ref.split_heads:
            weight = weight.reshape(weight.shape[0], -1)
        whole = ref.expert is not None or ref.transposed or ref.ranges is None
        if ref.transposed:
            weight = weight.T
        if ref.ranges is not None and whole:
            weight = np.concatenate([weight[a:b] for a, b in ref.ranges])
        weight = weight[ref.start :: ref.step]
        if ref.input_scale is not None:
            weight = weight * self.store.read(ref.input_scale).reshape(-1)
        return np.ascontiguousarray(weight)

    def _bias(self, ref: WeightRef) -> Floats | None:
        if ref.bias is None:
            return None
        bias = self.store.read(ref.bias)
        if ref.expert is not None:
            experts = self.architecture.routing.num_experts if self.architecture.routing else 1
            bias = bias.reshape(experts, -1)[ref.expert]
        bias = bias.reshape(-1)
        if ref.ranges is not None:
            bias = np.concatenate([bias[a:b] for a, b in ref.ranges])
        return bias[ref.start :: ref.step]
