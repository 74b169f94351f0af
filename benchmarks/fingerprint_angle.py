"""Hamming distance of two fingerprints against the angle between what they were made from.

    python -m benchmarks.fingerprint_angle

Draws pairs of synthetic signatures and prints, as a markdown table, the angle between their
matrices P (less the mean diagonal), the distance 128 angle / pi that it predicts, the same for the
mean angle of the stacked vectors P a (docs/mathematics.md, equation 15), and the mean and standard
deviation of the distance measured over pairs. With `one direction` P has rank one, as if
every layer had the same u1; with `30 directions` every layer has its own. Asserts nothing.
"""

from __future__ import annotations

import click
import numpy as np

from ckptforensics.findings.fingerprint import BITS, fingerprint, fingerprint_distance

WIDTH, LAYERS, PAIRS = 576, 30, 40
CASES = (("one direction", 1), ("30 directions", LAYERS))
DEGREES = (2, 5, 10, 20, 45, 70, 90)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def turned(u: np.ndarray, degrees: float, generator: np.random.Generator) -> np.ndarray:
    """Each row turned by this angle in a random plane of its own."""
    other = generator.standard_normal(u.shape)
    other = unit(other - np.sum(other * u, axis=1, keepdims=True) * u)
    return np.cos(np.radians(degrees)) * u + np.sin(np.radians(degrees)) * other


def matrix_angle(u: np.ndarray, v: np.ndarray) -> float:
    """Angle in radians between the P of two sets of directions with equal weights."""

    def deflated(rows: np.ndarray) -> np.ndarray:
        p = rows.T @ rows
        return p - np.eye(len(p)) * np.trace(p) / len(p)

    a, b = deflated(u), deflated(v)
    return float(np.arccos(np.clip(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def stacked_angle(u: np.ndarray, v: np.ndarray, generator: np.random.Generator) -> float:
    """Mean angle in radians between the stacked vectors P a of both sets, over draws of 8 a."""
    angles = []
    for _ in range(64):
        a = generator.standard_normal((u.shape[1], 8))
        p = u.T @ (u @ a) - a * len(u) / u.shape[1]
        q = v.T @ (v @ a) - a * len(v) / v.shape[1]
        cosine = np.sum(p * q) / np.linalg.norm(p) / np.linalg.norm(q)
        angles.append(np.arccos(np.clip(cosine, -1, 1)))
    return float(np.mean(angles))


def main() -> None:
    generator = np.random.default_rng(0)
    click.echo(
        "| directions | each turned by | angle of P | bits by it | bits by (15) | measured bits |\n"
        "|---|---|---|---|---|---|"
    )
    for name, count in CASES:
        for degrees in DEGREES:
            angles, stacked, distances = [], [], []
            for _ in range(PAIRS):
                u = unit(generator.standard_normal((count, WIDTH)))
                v = turned(u, degrees, generator)
                angles.append(matrix_angle(u, v))
                stacked.append(stacked_angle(u, v, generator))
                sigma = np.tile(np.array([[10.0, 1.0]]), (count, 1))
                distances.append(fingerprint_distance(fingerprint(u, sigma), fingerprint(v, sigma)))
            angle = float(np.mean(angles))
            click.echo(
                f"| {name} | {degrees}° | {np.degrees(angle):.1f}° | {BITS * angle / np.pi:.1f} | "
                f"{BITS * np.mean(stacked) / np.pi:.1f} | "
                f"{np.mean(distances):.1f} ± {np.std(distances):.1f} |"
            )


if __name__ == "__main__":
    main()
