"""A transformers block taken apart: its branches as functions, and the norms around them.

Which norm does what is seen from one run of the block with hooks: the norm that returns what a
branch reads stands before it, and so on. `wire` puts the parts together again and compares with
the block itself, so a block that is wired in another way fails instead of being misread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
FFN = ("block_sparse_moe", "mlp", "shared_mlp", "ffn", "feed_forward", "mixer")
FACTORS = ("residual_multiplier", "residual_scale")
SHARED = ("shared_expert", "shared_experts")
CACHES = ("past_key_values", "cache", "layer_past")
Rows = torch.Tensor
Map = Callable[[Rows], Rows]


@dataclass(frozen=True)
class Experts:
    """A layer of experts in parts.

    Attributes
    ----------
    mix : (N, d) normed rows, and factors on what experts return and on what they read, (N, E)
        each, to the sum of the experts' outputs, (N, d)
    weights : each expert's weight for each row, (N, E), 0 for those not chosen
    shared : the expert that always acts, if any
    shared_weight : its weight for each row, (N, 1); None for 1
    on_input : the weights multiply what the experts read instead of what they return
    """

    mix: Callable[[Rows, Rows, Rows | None], Rows]
    weights: Map
    shared: Map | None
    shared_weight: Map | None
    on_input: bool

    def __call__(self, n: Rows) -> Rows:
        """The layer, as the sum of its parts."""
        weights = self.weights(n)
        if self.on_input:
            out = self.mix(n, torch.ones_like(weights), weights)
        else:
            out = self.mix(n, weights, None)
        gate = 1 if self.shared_weight is None else self.shared_weight(n)
        return out if self.shared is None else out + gate * self.shared(n)

    def mixed(self, n: Rows, means: Rows) -> Rows:
        """The layer with the same weights for all rows.

        `means` : of how often experts are chosen (where weights act on inputs), of their weights
        on all rows, and of the shared expert's (where it has one)
        """
        gate = 1 if self.shared_weight is None else means[-1]
        means = means if self.shared_weight is None else means[:-1]
        if self.on_input:
            chosen, weights = means.expand(len(n), -1).chunk(2, dim=1)
            out = self.mix(n, chosen, weights / chosen)
        else:
            out = self.mix(n, means.expand(len(n), -1), None)
        return out if self.shared is None else out + gate * self.shared(n)


@dataclass(frozen=True)
class Branch:
    """after(x + factor * post(call(before(x)))), each norm None where there is none."""

    call: Map
    before: nn.Module | None = None
    post: nn.Module | None = None
    after: nn.Module | None = None
    factor: float | Rows = 1.0
    experts: Experts | None = None

    def added(self, x: Rows) -> Rows:
        """What the branch adds to rows of the residual stream."""
        n = self.call(x if self.before is None else self.before(x))
        return self.factor * (n if self.post is None else self.post(n))


@dataclass(frozen=True)
class Wiring:
    """A block's branches, and whether both read the same stream."""

    attention: Branch
    ffn: Branch
    parallel: bool

    def __call__(self, x: Rows) -> Rows:
        """The block on single tokens, from its parts."""
        attended = self.attention.added(x)
        if self.parallel:
            return x + attended + self.ffn.added(x)
        for branch in (self.attention, self.ffn):
            x = x + (attended if branch is self.attention else branch.added(x))
            x = x if branch.after is None else branch.after(x)
        return x


def choose_block(model: nn.Module, blocks: str) -> int:
    """Number (from 0) of the last block, of those with experts where there are any.

    Not the first, before which some models norm the embeddings.
    """
    modules = list(attrgetter(blocks)(model))
    having = [i for i, m in enumerate(modules) if any("experts" in n for n, _ in m.named_modules())]
    return having[-1] if having else len(modules) - 1


def wire(model: nn.Module, blocks: str, number: int, run: Callable[[], Any]) -> Wiring:
    """Take block `number` (from 0) apart; `run` makes the model process one token alone."""
    block = attrgetter(blocks)(model)[number]
    owner = attrgetter(blocks.rpartition(".")[0])(model) if "." in blocks else model
    if hasattr(owner, "ffns"):
        found, x, y = _xlm(owner, number, run)
    elif hasattr(block, "rel_attn"):
        found, x, y = _xlnet(block, run)
    elif hasattr(block, "intermediate"):
        found, x, y = _bert(block, run)
    else:
        found, x, y = _by_names(block, run)
    for wiring in found:
        if torch.allclose(wiring(x), y, rtol=1e-4, atol=1e-5 * float(y.abs().max())):
            return wiring
    raise AssertionError(f"the parts of {type(block).__name__} do not make the block")


def _by_names(block: nn.Module, run: Callable[[], Any]) -> tuple[list[Wiring], Rows, Rows]:
    """Blocks with modules of the usual names, and norms wherever they are."""
    inner = getattr(block, "norm_attn_norm", block)  # DBRX
    attention, ffn = _first(inner, ATTENTION), _first(block, FFN)
    first, last = (ffn, ffn) if ffn is not None else (block.fc1, block.fc2)  # OPT
    attention = attention or nn.Identity()  # a block of an FFN alone; never called
    norms = [m for part in {inner, block} for m in part.children() if _is_norm(m)]
    with _recorded([block, attention, first, last, *norms]) as seen:
        run()
    x, y = seen[block].input, seen[block].output
    # Granite's shared expert stands beside the experts.
    sparse = getattr(block, "block_sparse_moe", None)
    beside = None if sparse is None else getattr(block, "shared_mlp", None)

    def attend(n: Rows) -> Rows:
        return seen[attention].again(attention, n) if attention in seen else 0 * n

    def feed(n: Rows) -> Rows:
        if ffn is None:
            return block.fc2(block.activation_fn(block.fc1(n)))
        out = seen[ffn].again(ffn, n)
        return out if beside is None else out + beside(n)

    def norm(match: Callable[[_Call], bool]) -> nn.Module | None:
        return next((m for m in norms if m in seen and match(seen[m])), None)

    experts = None if ffn is None else _experts(ffn, block)
    before = [
        norm(lambda call, m=m: m in seen and _same(call.output, seen[m].input))
        for m in (attention, first)
    ]
    behind = [
        norm(lambda call, m=m: m in seen and _same(call.input, seen[m].output))
        for m in (attention, last)
    ]
    # Bloom's attention adds the residual stream itself: the norm behind it is the FFN's.
    behind = [None if m in before else m for m in behind]
    end = norm(lambda call: _same(call.output, y))
    factors = [_factor(block, number) for number in (1, 2)]
    if end is not None:
        attended = Branch(attend, after=before[1], factor=factors[0])
        fed = Branch(feed, after=end, factor=factors[1], experts=experts)
        return [Wiring(attended, fed, parallel=False)], x, y
    attended = Branch(attend, before[0], behind[0], factor=factors[0])
    fed = Branch(feed, before[1], behind[1], factor=factors[1], experts=experts)
    return [Wiring(attended, fed, parallel=p) for p in (False, True)], x, y


def _factor(block: nn.Module, number: int) -> float | Rows:
    """What multiplies the result of branch 1 or 2."""
    scale = getattr(block, f"layer_scale{number}", None)
    return (_first(block, FACTORS) or 1.0) if scale is None else scale.lambda1


def _bert(block: Any, run: Callable[[], Any]) -> tuple[list[Wiring], Rows, Rows]:
    with _recorded([block, block.attention.self]) as seen:
        run()
    inner, ends = block.attention.self, block.attention.output
    attention = Branch(lambda n: ends.dense(seen[inner].again(inner, n)), after=ends.LayerNorm)
    ffn = Branch(lambda n: block.output.dense(block.intermediate(n)), after=block.output.LayerNorm)
    return [Wiring(attention, ffn, parallel=False)], seen[block].input, seen[block].output


def _xlnet(block: Any, run: Callable[[], Any]) -> tuple[list[Wiring], Rows, Rows]:
    attention, ffn = block.rel_attn, block.ff
    with _recorded([block, attention]) as seen:
        run()
    norm = attention.layer_norm

    def attend(n: Rows) -> Rows:
        attention.layer_norm = nn.Identity()
        try:
            return seen[attention].again(attention, n) - n
        finally:
            attention.layer_norm = norm

    def feed(n: Rows) -> Rows:
        return ffn.layer_2(ffn.activation_function(ffn.layer_1(n)))

    branches = Branch(attend, after=norm), Branch(feed, after=ffn.layer_norm)
    return [Wiring(*branches, parallel=False)], seen[block].input, seen[block].output


def _xlm(owner: Any, number: int, run: Callable[[], Any]) -> tuple[list[Wiring], Rows, Rows]:
    """XLM's blocks are entries of lists."""
    attention, ffn = owner.attentions[number], owner.ffns[number]
    first, last = owner.layer_norm1[number], owner.layer_norm2[number]
    with _recorded([attention, last]) as seen:
        run()
    attend = Branch(lambda n: seen[attention].again(attention, n), after=first)
    feed = Branch(lambda n: ffn(n[:, None])[:, 0], after=last)
    return [Wiring(attend, feed, parallel=False)], seen[attention].input, seen[last].output


def _experts(ffn: Any, block: Any) -> Experts | None:
    """The parts of a layer of experts."""
    experts = getattr(ffn, "experts", None)
    if experts is None:
        return None
    shared = _first(ffn, SHARED) or getattr(block, "shared_mlp", None)
    gate = getattr(ffn, "shared_expert_gate", None)
    on_input = type(experts).__name__ == "Llama4TextExperts"
    if hasattr(experts, "config"):
        # The module's own loop over its experts: all of them for every row take half as long.
        experts.config._experts_implementation = "eager"

    def mix(n: Rows, outer: Rows, inner: Rows | None) -> Rows:
        if inner is not None:
            inputs = inner.T[:, :, None] * n
            outputs = experts(inputs.reshape(-1, n.shape[1])).reshape(inputs.shape)
            return torch.einsum("ne,end->nd", outer, outputs)
        heard = torch.nonzero(outer.any(dim=0)).ravel()
        if not len(heard):
            return torch.zeros_like(n)
        return experts(n, heard.expand(len(n), -1), outer[:, heard]).reshape(n.shape)

    def weights(n: Rows) -> Rows:
        if on_input:
            return ffn.router(n)[0]
        calls: list[tuple[Rows, Rows]] = []

        def keep(hidden: Rows, index: Rows, weight: Rows) -> Rows:
            calls.append((index, weight))
            return torch.zeros_like(hidden)

        experts.forward = keep
        try:
            ffn(n[:, None])
        finally:
            del experts.forward
        index, weight = (c.reshape(len(n), -1) for c in calls[0])
        dense = torch.zeros(len(n), experts.num_experts)
        return dense.scatter_add(1, index, weight.to(dense.dtype))

    shared_weight = None if gate is None else lambda n: torch.sigmoid(gate(n))
    return Experts(mix, weights, shared, shared_weight, on_input)


@dataclass
class _Call:
    """Arguments and result of a module for one token."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None

    @property
    def input(self) -> Rows:
        """The first argument, (1, d)."""
        return _rows(self.args[0] if self.args else self.kwargs["hidden_states"])

    @property
    def output(self) -> Rows:
        """The first result, (1, d)."""
        return _rows(self.result)

    def again(self, module: nn.Module, n: Rows) -> Rows:
        """The module as the model called it, on other rows, each a token alone; (N, d)."""
        kwargs = {k: None if k in CACHES else v for k, v in self.kwargs.items()}
        if not self.args:
            return _rows(module(**kwargs | {"hidden_states": n[:, None]}))
        first, *others = self.args
        # Some modules are given the residual stream, to add it themselves.
        others = [0 * a if _is_like(a, first) else a for a in others]
        return _rows(module(n[:, None], *others, **kwargs))


@contextmanager
def _recorded(modules: list[nn.Module]) -> Iterator[dict[nn.Module, _Call]]:
    """The modules' calls while the context is open."""
    seen: dict[nn.Module, _Call] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[module] = _Call(args, kwargs)

    def after(module: nn.Module, _args: Any, result: Any) -> None:
        seen[module].result = result

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    hooks += [m.register_forward_hook(after) for m in modules]
    try:
        with torch.no_grad():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _rows(value: Any) -> Rows:
    tensor: Rows = value[0] if isinstance(value, tuple | list) else value
    return tensor.reshape(-1, tensor.shape[-1])


def _same(a: Rows, b: Rows) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _is_like(a: Any, b: Rows) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("Norm", "Norm1P"))


def _first(block: nn.Module, names: tuple[str, ...]) -> Any:
    return next((m for m in (getattr(block, name, None) for name in names) if m is not None), None)
