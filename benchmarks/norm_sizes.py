"""The one size by which L lets a norm behind a branch divide, on Gemma 3 270M and MiniLM.

    python -m benchmarks.norm_sizes [--vectors 20000]

Prints, as a markdown table with ranges over the layers: the size over that of the branch's linear
part alone, the standard error of the size over 512 vectors, and the factor between the norm's
linear part and the nearest multiple of the branch's linear map to the norm's true output. Asserts
nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import click
import numpy as np

from ckptforensics import Fit, open_checkpoint
from ckptforensics.forward import affine, branch_result
from ckptforensics.layers import Attention, Ffn, stream_blocks
from ckptforensics.linear import AttentionMap, ffn_map
from tools import gemma3, minilm


def sizes(branch: Attention | Ffn, linear: np.ndarray, vectors: int) -> tuple[float, float, float]:
    """The three numbers of one branch; `linear` is its map without the norm behind it."""
    x = np.random.default_rng(9).standard_normal((vectors, len(linear)), dtype=np.float32)
    entering = branch_result(branch, affine(x, branch.norm)).astype(np.float64)
    norm = branch.post_norm
    if norm is None:
        norm, entering, linear = branch.after_norm, entering + x, linear + np.eye(len(linear))
    assert norm is not None
    if norm.kind == "layer":
        entering -= entering.mean(axis=1, keepdims=True)
        linear = linear - linear.mean(axis=0)
    squares = np.mean(entering**2, axis=1) + norm.eps
    size, frobenius = np.sqrt(squares.mean()), np.linalg.norm(linear)
    error = squares.std() / squares.mean() / 2 / np.sqrt(512)
    true = entering / np.sqrt(squares)[:, None]
    best = np.sum(true * (x @ linear.T)) / vectors / frobenius**2
    return size / (frobenius / np.sqrt(len(linear))), float(error), 1 / size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=20_000)
    options = parser.parse_args()
    click.echo("| | over the linear part's | standard error | over the best factor |")
    click.echo("|---|---|---|---|")
    models: list[tuple[str, Path]] = [
        ("Gemma 3 270M", gemma3.gguf_file()),
        ("MiniLM", minilm.model_directory()),
    ]
    for name, path in models:
        found: dict[str, list[tuple[float, float, float]]] = {"FFN": [], "attention": []}
        for block in stream_blocks(open_checkpoint(path)):
            assert block.attention is not None and isinstance(block.ffn, Ffn)
            f, a = ffn_map(block.ffn, Fit(), block.layer), AttentionMap(block.attention)
            found["FFN"].append(sizes(block.ffn, f.dense(), options.vectors))
            found["attention"].append(sizes(block.attention, a.dense(), options.vectors))
        for part, rows in found.items():
            (a0, e0, b0), (a1, e1, b1) = np.min(rows, axis=0), np.max(rows, axis=0)
            click.echo(
                f"| {name}, {part} | {a0:.2f} to {a1:.2f} | {e0:.1%} to {e1:.1%} "
                f"| {b0:.2f} to {b1:.2f} |"
            )


if __name__ == "__main__":
    main()
