"""Which weight a comparison overflows by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from pydantic import ValidationError

from ckptforensics.errors import NotFinite
from ckptforensics.lineage.models import Model

# The square of a larger weight, summed over a matrix, may not be a float32.
_LARGE = 1e15


@contextmanager
def overflow_refused(models: Sequence[Model]) -> Iterator[None]:
    """Numbers that overflow are a NotFinite that names the weight; NumPy says nothing of them."""
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yield
    except (np.linalg.LinAlgError, ValidationError):
        for model in models:
            if model.checkpoint is not None:
                _refuse_large(model)
        raise


def _refuse_large(model: Model) -> None:
    store = model.weights.store
    for name in model.weights.architecture.used.keys() | model.weights.architecture.unused.keys():
        info = store.info(name)
        if info.unreadable or not name.endswith(("weight", "bias")):
            continue
        largest = float(np.abs(store.read(name)).max(initial=0))
        if largest > _LARGE:
            raise NotFinite(
                f"products with a weight of {largest:.3g} overflow float32",
                path=info.path,
                tensor=name,
                hint="the weights are damaged or not of this architecture",
            ) from None
