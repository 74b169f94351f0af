"""What is taken away from a running model, each by hooks that are gone afterwards.

Every function is a context manager: the model is changed inside it and as before behind it. No
weight is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ckptforensics.arrays import Doubles
from ckptforensics.errors import NothingAnalysable
from ckptforensics.runtime import libraries
from ckptforensics.runtime.model import Runtime, first_of, hidden_argument, with_first


@contextmanager
def without_direction(runtime: Runtime, layer: int, direction: Doubles) -> Iterator[None]:
    """Take a direction out of what a layer's FFN reads; the residual stream itself keeps it.

    Parameters
    ----------
    direction : (hidden_size,), of length 1, in the space of the residual stream before the norm

    Raises
    ------
    NothingAnalysable
        if the FFN has no input of its own (parallel blocks that share a norm).
    """
    torch = libraries.torch()
    if runtime.checkpoint.architecture.residual == "parallel":
        module = runtime.module(layer, "ffn_norm")
        if module is None or module is runtime.module(layer, "attention_norm"):
            raise NothingAnalysable(
                f"in layer {layer} attention and FFN read one norm: nothing can be taken from one"
            )
        modules = [module]
    else:
        module, reads = runtime.middle(layer)
        if reads and module is runtime.module(layer, "ffn_norm"):
            modules = [module]
        else:  # the FFN reads the stream itself
            roles = ("gate", "up", "router")
            found = (runtime.module(layer, role) for role in roles)  # type: ignore[arg-type]
            modules = [m for m in found if m is not None]
    unit = torch.tensor(direction)

    def reading(module: Any, args: Any, kwargs: Any) -> Any:
        name, x = hidden_argument(args, kwargs)
        v = unit.to(device=x.device, dtype=torch.float32)
        whole = x.float()
        less = (whole - (whole @ v)[..., None] * v).to(x.dtype)
        if name is None:
            return (less, *args[1:]), kwargs
        return args, {**kwargs, name: less}

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(reading, with_kwargs=True).remove)
        yield


@contextmanager
def setting_coordinates(
    runtime: Runtime, layer: int, values: dict[int, float], above: float
) -> Iterator[None]:
    """Set coordinates of the tokens whose norm exceeds `above` after a layer.

    Parameters
    ----------
    values : coordinate to what it becomes
    above : norm from which a token is concerned
    """
    torch = libraries.torch()
    places = list(values)

    def leaving(module: Any, args: Any, output: Any) -> Any:
        state = first_of(output).clone()
        high = state.float().norm(dim=-1) > above
        new = torch.tensor([values[c] for c in places], dtype=state.dtype, device=state.device)
        rows = state[high]
        rows[:, places] = new
        state[high] = rows
        return with_first(output, state)

    handle = runtime.blocks[layer - 1].register_forward_hook(leaving)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_weight(
    runtime: Runtime,
    layer: int,
    place: tuple[int, int],
    value: float,
    *,
    below: float | None = None,
) -> Iterator[None]:
    """Let a layer's down projection act as if one weight were zero.

    Parameters
    ----------
    place : row and column of the weight, as (out, in)
    value : the weight
    below : leave the weight to the tokens for which it alone adds more than this

    Raises
    ------
    NothingAnalysable
        if the layer has no down projection of its own (experts).
    """
    row, column = place
    module = runtime.module(layer, "down")
    if module is None:
        raise NothingAnalysable(f"layer {layer} has no down projection that every token uses")

    def leaving(module: Any, args: Any, output: Any) -> Any:
        changed = output.clone()
        added = value * args[0][..., column]
        if below is not None:
            added = added.where(added.abs() <= below, 0)
        changed[..., row] -= added
        return changed

    handle = module.register_forward_hook(leaving)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_ffn(runtime: Runtime, layers: Sequence[int]) -> Iterator[None]:
    """Let what attention leaves pass through these layers, without the FFN's part."""
    held: dict[int, Any] = {}

    def on_middle(layer: int, state: Any) -> None:
        held[layer] = state

    with ExitStack() as stack:
        stack.enter_context(runtime.watching_middles(on_middle))
        for layer in layers:

            def leaving(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                return with_first(output, held.pop(layer))

            stack.callback(runtime.blocks[layer - 1].register_forward_hook(leaving).remove)
        yield


@contextmanager
def without_blocks(runtime: Runtime, layers: Sequence[int]) -> Iterator[None]:
    """Let what these layers read be what they write."""
    held: dict[int, Any] = {}
    with ExitStack() as stack:
        for layer in layers:

            def entering(module: Any, args: Any, kwargs: Any, layer: int = layer) -> None:
                held[layer] = hidden_argument(args, kwargs)[1]

            def leaving(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                return with_first(output, held.pop(layer))

            block = runtime.blocks[layer - 1]
            stack.callback(block.register_forward_pre_hook(entering, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leaving).remove)
        yield
