"""Vectors by which sketches are searched: one product with a catalog's array finds the nearest.

A sketch becomes a unit vector for each channel, whose product with that of another sketch estimates
how alike the two are in it. What is random in them comes from SHAKE-128 and is the same forever.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.registry.sketch.record import By, Sketch
from ckptforensics.registry.sketch.spectra import KINDS, OF, RANKS, Of
from ckptforensics.results.find import Channel

# Raised whenever a vector of the same sketch becomes another one.
VERSION = 1
# Random signs of a token: the projection is kept by its products with pairs of them.
_SIGNS: dict[By, int] = {"strings": 24, "ids": 16}
# Random waves by which sets of spectra are compared.
_WAVES = 256

CHANNELS: tuple[Channel, ...] = (*_SIGNS, *OF)
WIDTHS = (*(n * (n + 1) // 2 for n in _SIGNS.values()), *(_WAVES for _ in OF))
WIDTH = sum(WIDTHS)


def features(sketch: Sketch) -> Floats:
    """(`WIDTH`,) the vectors of all `CHANNELS` one after another, zeros where one is missing."""
    parts = [
        *(_of_tokens(sketch, by, signs) for by, signs in _SIGNS.items()),
        *(_of_spectra(sketch, of) for of in OF),
    ]
    return np.concatenate(parts).astype(np.float32)


def _of_tokens(sketch: Sketch, by: By, signs: int) -> Doubles:
    """Products of the projection with random signs of the tokens' names.

    The inner product of two such vectors is in the mean that of the projections over the tokens
    which both have.
    """
    found = sketch.tokens.get(by)
    if found is None:
        return np.zeros(signs * (signs + 1) // 2)
    rows = np.stack([_signs(int(name), signs) for name in found.names])
    likeness = found.likeness - found.likeness.sum() / (found.likeness.size - len(found.likeness))
    np.fill_diagonal(likeness, 0)
    products = rows.T @ likeness @ rows
    upper = np.triu_indices(signs)
    # Products off the diagonal stand for two.
    return _unit(products[upper] * np.where(upper[0] == upper[1], 1, np.sqrt(2)))


def _of_spectra(sketch: Sketch, of: Of) -> Doubles:
    """Mean over the spectra of random waves: the kernel mean, by random Fourier features.

    The kernel is so narrow that the inner product of two sets counts the spectra that they share.
    """
    spectra = sketch.spectra.get(of)
    if spectra is None:
        return np.zeros(_WAVES)
    directions, phases = _waves(KINDS[of].near)
    return _unit(np.cos(spectra @ directions + phases).mean(axis=0))


def _unit(vector: Doubles) -> Doubles:
    size = float(np.linalg.norm(vector))
    return vector / size if size > 0 else vector


@cache
def _waves(near: float) -> tuple[Doubles, Doubles]:
    # Normal numbers by Box and Muller.
    uniform = (_random("waves", 2 * RANKS * _WAVES) + 0.5) / 2**32
    radius, angle = np.split(uniform, 2)
    normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    directions = normal.reshape(RANKS, _WAVES) / (near * np.sqrt(RANKS))
    return directions, 2 * np.pi * _random("phases", _WAVES) / 2**32


@cache
def _signs(name: int, count: int) -> Doubles:
    bits = np.unpackbits(np.frombuffer(_bytes(f"signs {name}", (count + 7) // 8), np.uint8))
    return 1.0 - 2.0 * bits[:count].astype(np.float64)


def _random(label: str, count: int) -> Doubles:
    """Integers below 2^32."""
    return np.frombuffer(_bytes(label, 4 * count), "<u4").astype(np.float64)


def _bytes(label: str, count: int) -> bytes:
    return hashlib.shake_128(f"ckptforensics {label}".encode()).digest(count)
