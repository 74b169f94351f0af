"""Time of `ckpt sign` on SmolLM2 against the published algorithm.

    python -m benchmarks.bench_sign                 3 layers of the published algorithm
    python -m benchmarks.bench_sign --all-layers    all of them
    python -m benchmarks.bench_sign --driver gels   its least squares by unpivoted QR

Everything is measured in one run on one machine, the two sides in turn, and printed as a markdown
table. Nothing is asserted: times of a shared machine are evidence, not a test.

The published algorithm, per layer: 100,000 vectors n ~ N(0, I), the FFN's hidden activation y(n),
least squares for F1 in y = F1 n, then the dense SVD of I + A, I + F and L = (I + F)(I + A). It gets
its weights as torch tensors in memory; reading and dequantizing them is not counted for it, while
`ckpt sign` is timed as a process, interpreter start and reading included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.common import ckpt, load, machine, ratios, require_quiet, run, spread
from benchmarks.published import Published, published_layer
from ckptforensics import load_result, open_checkpoint
from ckptforensics.layers import load_block
from tools.smollm2 import gguf_file

SPREAD = (3, 12, 29)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default=",".join(map(str, SPREAD)), help="of the published one")
    parser.add_argument("--all-layers", action="store_true", help="run it on every layer")
    parser.add_argument("--samples", type=int, default=100_000, help="of it, a layer")
    parser.add_argument(
        "--driver",
        default="gelsy",
        choices=["gelsy", "gels", "gelsd", "gelss"],
        help="of torch.linalg.lstsq; gelsy is its default and what the published code runs",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    require_quiet()
    model = gguf_file()
    checkpoint = open_checkpoint(model)
    total = checkpoint.architecture.sizes.num_layers
    layers = [int(n) for n in options.layers.split(",")]
    if options.all_layers:
        layers = list(range(1, total + 1))
    torch.manual_seed(0)
    load_before = load()
    sign = ckpt("sign", str(model), "--quiet", "--no-cache")
    run(sign)  # fills the page cache and Python's bytecode cache
    published: list[Published] = []
    signed: list[float] = []
    signed_cpu: list[float] = []

    for layer in layers:  # in turns
        once = run(sign)
        signed.append(once.seconds)
        signed_cpu.append(once.cpu)
        published.append(
            published_layer(load_block(checkpoint, layer), options.samples, options.driver)
        )

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "paper.safetensors"
        run([*sign, "--fit", "paper", "--output", str(saved)])
        paper = load_result(saved).u
    angles = [
        np.degrees(np.arccos(min(1.0, abs(float(p.direction @ paper[p.layer - 1])))))
        for p in published
    ]

    ratio = ratios([p.seconds * total for p in published], signed)
    theirs = sum(p.seconds for p in published) * total / len(published)
    ours_cpu = statistics.median(signed_cpu)
    theirs_cpu = sum(p.cpu for p in published) * total / len(published)
    part = {
        name: statistics.median(getattr(p, name) for p in published)
        for name in ("sampling", "least_squares", "svd")
    }
    which = "all layers" if len(layers) == total else f"layers {', '.join(map(str, layers))}"
    rows = [
        *machine(),
        ("load average at the start", load_before),
        ("model", f"{model.name}, {total} layers"),
        (
            "`ckpt sign`, whole process",
            f"median of {len(signed)}: {spread(signed)}",
        ),
        (
            f"published algorithm, one layer ({which}; lstsq driver {options.driver})",
            f"median {statistics.median(p.seconds for p in published):.2f} s: "
            f"samples {part['sampling']:.2f}, least squares {part['least_squares']:.2f}, "
            f"SVDs {part['svd']:.2f}",
        ),
        (
            f"published algorithm, {total} layers",
            f"{theirs:.0f} s" + ("" if len(layers) == total else " (scaled by the layer count)"),
        ),
        ("**ratio, published to `ckpt sign`, of a layer each turn**", f"**{ratio}**"),
        (
            "ratio of processor times, all threads",
            f"{theirs_cpu / ours_cpu:.0f} ({theirs_cpu:.0f} s to {ours_cpu:.2f} s)",
        ),
        (
            "angle between its u1 and that of `--fit paper`",
            ", ".join(f"layer {p.layer}: {a:.2f}°" for p, a in zip(published, angles, strict=True)),
        ),
    ]
    click.echo("| what | measured |\n|---|---|")
    for name, text in rows:
        click.echo(f"| {name} | {text} |")


if __name__ == "__main__":
    main()
