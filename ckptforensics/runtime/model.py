"""A running model: its blocks, what flows between them, and where attention's part ends.

Everything is read through hooks on transformers' own modules; no forward pass is written here.
Layers count from 1, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptforensics.architectures.names import at_layer
from ckptforensics.architectures.schema import Role
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.findings.model import opened
from ckptforensics.runtime import libraries
from ckptforensics.runtime.tokenizer import Tokenizer, load_tokenizer
from ckptforensics.runtime.weights import Placement, build_model

# A layer's number and its residual stream, (batch, tokens, hidden_size); 0 is the embedding.
OnState = Callable[[int, Any], None]


@dataclass(frozen=True)
class Runtime:
    """A model that runs.

    Attributes
    ----------
    checkpoint : where its weights come from
    model : the transformers model, in evaluation mode
    blocks : its transformer blocks, in order
    """

    checkpoint: Checkpoint
    model: Any
    blocks: tuple[Any, ...]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's own; NothingAnalysable if it has none."""
        return load_tokenizer(self.checkpoint)

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return not self.checkpoint.architecture.family.bidirectional

    def forward(self, windows: Sequence[Sequence[int]], *, logits: bool = False) -> Any:
        """One forward pass over windows of equal length.

        Parameters
        ----------
        logits : through the head, too

        Returns
        -------
        what the transformers model returns

        Raises
        ------
        UsageError
            if a token is not in the vocabulary, or a window is longer than the model's positions.
        """
        torch = libraries.torch()
        rows = self.model.get_input_embeddings().num_embeddings
        for window in windows:
            for token in window:
                if not 0 <= token < rows:
                    raise UsageError(f"token {token} is not in the vocabulary of {rows:,}")
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and windows and len(windows[0]) > most:
            raise UsageError(
                f"a window of {len(windows[0]):,} tokens is longer than the model's {most:,} "
                "positions",
                hint="change --window",
            )
        device = self.model.get_input_embeddings().weight.device
        if device.type == "meta":  # offloaded: accelerate moves what comes from the CPU
            device = torch.device("cpu")
        ids = torch.tensor([list(w) for w in windows], device=device)
        run = self.model if logits else self.model.base_model
        more = {} if not self.causal else {"use_cache": False}
        with torch.inference_mode(), libraries.quietly():
            return run(input_ids=ids, **more)

    @contextmanager
    def watching(self, on_state: OnState) -> Iterator[None]:
        """Call `on_state` with the residual stream before layer 1 and after each layer."""
        with ExitStack() as stack:

            def entering(module: Any, args: Any, kwargs: Any) -> None:
                on_state(0, hidden_argument(args, kwargs)[1])

            stack.enter_context(_hook(self.blocks[0].register_forward_pre_hook, entering))
            for layer, block in enumerate(self.blocks, 1):

                def leaving(module: Any, args: Any, output: Any, layer: int = layer) -> None:
                    on_state(layer, first_of(output))

                stack.callback(block.register_forward_hook(leaving).remove)
            yield

    @contextmanager
    def watching_middles(self, on_state: OnState) -> Iterator[None]:
        """Call `on_state` with the residual stream between attention and FFN of each layer.

        In a parallel block, which has none, that is the layer's input and what attention adds.

        Raises
        ------
        NothingAnalysable
            if the family's data do not say where in the block that is.
        """
        scale = self.checkpoint.architecture.attention_scale
        parallel = self.checkpoint.architecture.residual == "parallel"
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks, 1):
                module, reads = self.middle(layer)
                seen: dict[str, Any] = {}

                def entering(module: Any, args: Any, kwargs: Any, seen: Any = seen) -> None:
                    seen["x"] = hidden_argument(args, kwargs)[1]

                def at_middle(state: Any, layer: int = layer, seen: Any = seen) -> None:
                    x = seen.pop("x", None)
                    if x is not None:  # the first time: a norm may be called for both branches
                        # Some blocks put the tokens of all windows one below the other.
                        state = state.reshape(x.shape)
                        on_state(layer, x + scale * state if parallel else state)

                def reading(module: Any, args: Any, kwargs: Any, at: Any = at_middle) -> None:
                    at(hidden_argument(args, kwargs)[1])

                def written(module: Any, args: Any, output: Any, at: Any = at_middle) -> None:
                    at(first_of(output))

                stack.enter_context(_hook(block.register_forward_pre_hook, entering))
                if reads:
                    stack.enter_context(_hook(module.register_forward_pre_hook, reading))
                else:
                    stack.callback(module.register_forward_hook(written).remove)
            yield

    def middle(self, layer: int) -> tuple[Any, bool]:
        """The module at the end of attention's part of a block, and whether it reads the stream.

        The norm before the FFN or, without one, the FFN's first matrix reads it; the norm behind
        the sum with attention writes it; so does, to be added, the output of a parallel block's.
        """
        architecture = self.checkpoint.architecture
        order: list[tuple[Role, bool]]
        sequential = architecture.residual != "parallel" and architecture.norm_position == "before"
        if sequential and not architecture.family.norm.affine:
            # Norms without parameters have no tensor to be named by: the last one is the FFN's.
            norms = [m for m in self.blocks[layer - 1].children() if "Norm" in type(m).__name__]
            if len(norms) > 1:
                return norms[-1], True
            order = []
        elif architecture.residual == "parallel":
            order = [("output", False)]
        elif architecture.norm_position == "after":
            order = [("attention_after_norm", False), ("attention_norm", False)]
        else:
            order = [("attention_after_norm", False), ("ffn_norm", True), ("router", True)]
            order += [("gate", True), ("up", True)]
        for role, before in order:
            module = self.module(layer, role)
            if module is not None:
                return module, before
        raise NothingAnalysable(
            f"it is not known where attention's part of layer {layer} ends",
            path=self.checkpoint.source.path,
        )

    def module(self, layer: int, role: Role) -> Any:
        """The block's module with the weight of a role, None if it is not one of its own."""
        layout = self.checkpoint.architecture.family.hf
        spec = at_layer(layout, layer - 1).tensors.get(role)
        if spec is None:
            return None
        modules = dict(self.blocks[layer - 1].named_modules())
        for form in spec.forms():
            for name in form.name:
                # Where every name has the layer's number, the block's own part comes behind it.
                own = name if "{layer}" in layout.block else name.partition(f"{layer - 1}.")[2]
                if own in modules:
                    return modules[own]
        return None


def start(
    model: Runtime | Checkpoint | str | Path,
    placement: Placement | None = None,
    attention: str | None = None,
) -> Runtime:
    """Load a model once so that several experiments can run it; errors as `build_model`.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes; a running model is given back
    placement : device and element type
    attention : transformers' name of the implementation, None for its own choice
    """
    if isinstance(model, Runtime):
        return model
    checkpoint = opened(model)
    built = build_model(checkpoint, placement or Placement(), attention)
    return Runtime(checkpoint, built, _blocks(checkpoint, built))


def _blocks(checkpoint: Checkpoint, model: Any) -> tuple[Any, ...]:
    """The list of modules with one entry a layer; of several the one with most parameters."""
    torch = libraries.torch()
    count = checkpoint.architecture.sizes.num_layers
    lists: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise NothingAnalysable(
            f"the {count} layers are not found in transformers' {type(model).__name__}",
            path=checkpoint.source.path,
        )
    largest: Any = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    return tuple(largest)


def first_of(output: Any) -> Any:
    """A module's result, of a tuple the first: the others are weights and caches."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first(output: Any, state: Any) -> Any:
    """A module's result with another state in it."""
    if isinstance(output, list):
        return [state, *output[1:]]
    return (state, *output[1:]) if isinstance(output, tuple) else state


def hidden_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """The states that a module is called with, and their name (None for the first argument)."""
    if args:
        return None, args[0]
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return name, kwargs[name]


@contextmanager
def _hook(register: Callable[..., Any], function: Callable[..., None]) -> Iterator[None]:
    handle = register(function, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
