"""The linear modules of a running model's blocks: what is rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear module.

    Attributes
    ----------
    name : in transformers' tree
    layer : of its block
    down : whether it is the FFN's last matrix
    module : itself
    transposed : its weight is stored (in, out), as GPT-2's are
    """

    name: str
    layer: int
    down: bool
    module: Any
    transposed: bool

    @property
    def matrix(self) -> Any:
        """Its weight as (out, in)."""
        weight = self.module.weight.detach()
        return weight.t() if self.transposed else weight

    @property
    def size(self) -> int:
        """How many weights it has."""
        return int(self.module.weight.numel())

    def apply(self, matrix: Any, x: Any) -> Any:
        """The product of rows with an (out, in) matrix in place of its own, and its bias."""
        return libraries.torch().nn.functional.linear(x, matrix, self.module.bias)

    @contextmanager
    def holding(self, matrix: Any) -> Iterator[None]:
        """The module with another (out, in) matrix; its own is never written to."""
        weight = self.module.weight
        own = weight.data
        weight.data = matrix.t() if self.transposed else matrix
        try:
            yield
        finally:
            weight.data = own


def find_linears(runtime: Runtime) -> tuple[Linear, ...]:
    """Every linear module of the blocks, in order; embeddings and head are none of them.

    Raises
    ------
    NothingAnalysable
        if a block multiplies with a matrix in another way (experts, recurrent layers).
    UsageError
        if weights are offloaded.
    """
    torch = libraries.torch()
    transposed = libraries.transformers("pytorch_utils").Conv1D
    names = {id(module): name for name, module in runtime.model.named_modules()}
    found = []
    for layer, block in enumerate(runtime.blocks, 1):
        down = runtime.module(layer, "down")
        own: set[int] = set()
        for module in block.modules():
            if isinstance(module, torch.nn.Linear | transposed):
                own.add(id(module.weight))
                name = names[id(module)]
                is_down = module is down
                found.append(Linear(name, layer, is_down, module, isinstance(module, transposed)))
        others = [n for n, p in block.named_parameters() if p.ndim > 1 and id(p) not in own]
        if down is None or others:
            what = "experts" if down is None else others[0]
            raise NothingAnalysable(
                f"layer {layer} has {what}: only linear modules that all tokens pass are rounded",
                path=runtime.checkpoint.source.path,
                hint="'ckpt quant plan' reads the weights alone",
            )
    if any(linear.module.weight.device.type == "meta" for linear in found):
        raise UsageError(
            "weights are offloaded, and rounding needs them all in memory",
            hint="leave --memory out, or choose a smaller --dtype",
        )
    return tuple(found)


def downs(linears: Sequence[Linear]) -> tuple[Linear, ...]:
    """Those that end an FFN, a layer each."""
    return tuple(linear for linear in linears if linear.down)
