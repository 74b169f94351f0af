"""A 128-bit locality-sensitive fingerprint of the singular defect directions.

The layers' directions enter as P = sum_l w_l u_l u_l', w_l = 1 - (s2/s1)^2, less its mean
diagonal: signs of u drop out, a layer without a gap (whose u1 is arbitrary) has weight near zero,
and nothing jumps when a gap or the number of layers changes a little. Bit k is the sign of
<H_k, P> for a fixed random H_k = sum_j a_kj b_kj' with Gaussian a and b. Given the a, the bits
of two signatures differ with probability theta / pi, theta the angle between the stacked vectors
P a_kj, which is close to the angle between the two P as matrices (docs/mathematics.md, section
9). Random numbers come from the Philox counter generator's raw words, whose stream is fixed.
"""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Doubles, Floats

FINGERPRINT_VERSION = "cf1"
BITS = 128
_TERMS = 8
_KEY = 0x636B7074  # 'ckpt'


def fingerprint(u: Floats, sigma: Floats) -> str:
    """The fingerprint of a model's directions, as `cf1-` and 32 hex digits.

    Parameters
    ----------
    u : (layers, hidden_size) unit directions, signs arbitrary
    sigma : (layers, 2) leading singular values
    """
    directions = np.asarray(u, np.float64)
    weight = layer_weights(sigma)
    bits = []
    for k in range(BITS):
        a, b = _gaussians(k, directions.shape[1])
        # <sum_j a_j b_j', P - tr(P)/d I>, without forming P
        value = np.sum(weight * np.sum((directions @ a.T) * (directions @ b.T), axis=1))
        value -= np.sum(a * b) * weight.sum() / directions.shape[1]
        bits.append(value > 0)
    packed = np.packbits(np.array(bits, np.uint8)).tobytes()
    return f"{FINGERPRINT_VERSION}-{packed.hex()}"


def layer_weights(sigma: Floats) -> Doubles:
    """w = 1 - (s2/s1)^2 of each layer: how well its u1 is defined, from 0 to 1."""
    s = np.asarray(sigma, np.float64)
    ratio = np.divide(s[:, 1], s[:, 0], out=np.ones(len(s)), where=s[:, 0] > 0)
    return 1 - ratio**2


def fingerprint_distance(a: str, b: str) -> int:
    """Number of differing bits, 0 to 128; ValueError if the two are of different versions."""
    version_a, _, bits_a = a.partition("-")
    version_b, _, bits_b = b.partition("-")
    if version_a != version_b:
        raise ValueError(f"fingerprints of versions {version_a!r} and {version_b!r}")
    return (int(bits_a, 16) ^ int(bits_b, 16)).bit_count()


def _gaussians(bit: int, size: int) -> tuple[Doubles, Doubles]:
    """Two (terms, size) Gaussian arrays by Box-Muller from the generator's raw words."""
    words = np.random.Philox(key=_KEY, counter=[0, bit, 0, 0]).random_raw(_TERMS * size)
    radius = np.sqrt(-2 * np.log((np.right_shift(words, 32) + 0.5) / 2**32))
    angle = (words & 0xFFFFFFFF) * (2 * np.pi / 2**32)
    shape = (_TERMS, size)
    return (radius * np.cos(angle)).reshape(shape), (radius * np.sin(angle)).reshape(shape)
