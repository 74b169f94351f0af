"""How far least squares on samples is from the closed form, on SmolLM2.

    python -m benchmarks.fit_noise [--layers 3,12,29] [--samples 1000,10000,100000]

Prints, as a markdown table, the relative difference |F1 - F1_closed| / |F1_closed| (Frobenius) of
`sampled` and `canonical`, the same of their F = W_down F1, the relative difference of s1 of L and
the angle between their u1. Asserts nothing.
"""

from __future__ import annotations

import argparse

import click
import numpy as np

from ckptforensics import Fit, open_checkpoint
from ckptforensics.layers import load_block
from ckptforensics.linear import block_map
from ckptforensics.spectra import singular_triplets
from tools.smollm2 import gguf_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="3,12,29")
    parser.add_argument("--samples", default="1000,10000,100000")
    options = parser.parse_args()
    checkpoint = open_checkpoint(gguf_file())
    click.echo("| layer | samples | F1 | F | s1 of L | angle of u1 |\n|---|---|---|---|---|---|")
    for layer in map(int, options.layers.split(",")):
        block = load_block(checkpoint, layer)
        closed = block_map(block, Fit())
        expected = singular_triplets(closed, generator=np.random.default_rng(0))
        dense = closed.ffn.dense()
        for samples in map(int, options.samples.split(",")):
            drawn = block_map(block, Fit("sampled", samples=samples))
            found = singular_triplets(drawn, generator=np.random.default_rng(0))
            cosine = min(1.0, abs(float(found.left[:, 0] @ expected.left[:, 0])))
            cells = [
                np.linalg.norm(drawn.ffn.f1 - closed.ffn.f1) / np.linalg.norm(closed.ffn.f1),
                np.linalg.norm(drawn.ffn.dense() - dense) / np.linalg.norm(dense),
                abs(found.values[0] / expected.values[0] - 1),
            ]
            click.echo(
                f"| {layer} | {samples:,} | "
                + " | ".join(f"{float(c):.3f}" for c in cells)
                + f" | {np.degrees(np.arccos(cosine)):.2f}° |"
            )


if __name__ == "__main__":
    main()
