"""Sides that are signatures made of given vectors: no checkpoint, nothing measured."""

from __future__ import annotations

import numpy as np

from ckptforensics.lineage.correspondence.layer_map import map_layers
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Level, Pair
from ckptforensics.results import (
    Direction,
    LayerSignature,
    ModelRecord,
    Signature,
    SignatureDocument,
)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, as signatures hold them."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def exchangeable(
    generator: np.random.Generator, layers: int = 4, width: int = 64, massive: int = 2
) -> np.ndarray:
    """(layers, width) directions in which a few coordinates, the same in all layers, stand out."""
    size = np.ones(width)
    size[generator.choice(width, massive, replace=False)] = 8
    return unit(generator.standard_normal((layers, width)) * size)


def signature(
    u: np.ndarray, v: np.ndarray | None = None, gap: float | list[float] = 2
) -> Signature:
    """A signature whose s1 is `gap` times s2 = 1 in each layer, or in all of them."""
    layers, width = u.shape
    s1 = np.broadcast_to(np.asarray(gap, np.float32), layers)
    sigma = np.stack([s1, np.ones(layers, np.float32)], axis=1)
    rows = tuple(
        LayerSignature(
            layer=i + 1,
            prefix=f"model.layers.{i}",
            sigma=(float(s1[i]), 1.0),
            gap=float(s1[i]),
            residual=1e-5,
            direction_top=(),
        )
        for i in range(layers)
    )
    document = SignatureDocument(
        tool_version="0",
        fingerprint=None,
        model=ModelRecord(
            path="m",
            family="llama",
            family_source="config",
            hidden_size=width,
            num_layers=layers,
            files=(),
        ),
        fit="canonical",
        layers=rows,
        direction=Direction(source="spectrum", layer=None, concentration=1.0, top=()),
        explosion=(),
        decay=(),
    )
    residual = np.full(layers, 1e-5, np.float32)
    return Signature(document, u, u[:, ::-1].copy() if v is None else v, sigma, residual)


def signed_pair(a: Signature, b: Signature, level: Level = "fast", seed: int = 0) -> Pair:
    """A pair of signatures whose layers correspond by their order as far as both have them."""
    pair = Pair(Model("a", None, signature=a), Model("b", None, signature=b), level, seed=seed)
    layers = tuple((i + 1, i + 1) for i in range(min(len(a.u), len(b.u))))
    pair.assume(map_layers, layers)
    return pair
