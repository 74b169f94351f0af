"""Which weight a layer's numbers overflow by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NotFinite


@contextmanager
def overflow_named(checkpoint: Checkpoint, layer: int) -> Iterator[None]:
    """A NotFinite that names no tensor names the layer and its largest weight.

    Parameters
    ----------
    layer : its number, from 1
    """
    try:
        yield
    except NotFinite as problem:
        if problem.tensor is not None:
            raise
        plan, store = checkpoint.architecture.layers[layer - 1], checkpoint.store
        names = [name for name, _ in plan.names()]
        embedding = checkpoint.architecture.embedding
        if layer == 1 and embedding is not None:
            names.append(embedding.tokens)
        sizes = {name: float(np.abs(store.read(name)).max(initial=0)) for name in names}
        tensor = max(sizes, key=lambda name: sizes[name])
        where = f"layer {layer} ({plan.prefix.rstrip('.')})"
        said = problem.message if where in problem.message else f"{problem.message} in {where}"
        raise NotFinite(
            f"{said}; the largest weight there is {sizes[tensor]:.3g}",
            path=store.info(tensor).path,
            tensor=tensor,
            hint=problem.hint or "the weights are damaged or not of this architecture",
        ) from None
