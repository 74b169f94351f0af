"""Every bar on speed and memory, as ratios measured in one run.

    python -m benchmarks.bench_speed                    all parts
    python -m benchmarks.bench_speed layer start        some of them
    python -m benchmarks.bench_speed --folder DIR       where models are built and deleted

A model built before with `python -m benchmarks.shapes DIR/7b` is used and kept.

Models are random weights of the shapes named, with planted defects (benchmarks/shapes.py).
Every pair takes turns, three times where nothing else is said; a ratio is the median of those of
the turns, with the least and the greatest. It does not begin on a busy machine. Nothing is
asserted: times of a shared machine are evidence, not a test. The parts `model` and `width` need
17 GB of disk; all parts take about an hour, most of it the published algorithm.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest import mock

import click
import numpy as np
import torch

from benchmarks import shapes
from benchmarks.common import (
    NO_NUMBA,
    Run,
    best,
    ckpt,
    drop_from_cache,
    fill_page,
    machine,
    ratios,
    read_once,
    require_quiet,
    run,
    spread,
    turns,
)
from benchmarks.published import published_layer
from ckptforensics import open_checkpoint
from ckptforensics.findings import Scope
from ckptforensics.findings import measure as measuring
from ckptforensics.layers import Block, load_block
from ckptforensics.linear import Fit, block_map

Row = tuple[str, str, str]
GB = 1e9
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
# The published algorithm draws so many vectors a layer; its samples and least squares are measured
# on a share of them and scaled, for they take time in proportion.
_PUBLISHED_SAMPLES = 100_000
_SHARE = 5
# Every pair is measured so often, in turns.
_TURNS = 3


@contextmanager
def built(folder: Path, name: str, shape: shapes.Shape) -> Iterator[Path]:
    """A model of this shape, deleted afterwards; one that is there under its name is kept."""
    if (folder / name).is_dir():
        yield folder / name
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}-") as made:
        # In a process of its own: a process begins with the peak memory of the one it comes from.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as builder:
            model = builder.submit(shapes.write, Path(made), shape).result()
        yield model


def weights(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors")) + sorted(model.glob("*.gguf"))


def sign(model: Path, *options: str) -> list[str]:
    return ckpt("sign", str(model), "--quiet", "--no-cache", *options)


def seconds(runs: list[Run]) -> list[float]:
    return [one.seconds for one in runs]


def peak(runs: list[Run]) -> int:
    return max(one.peak for one in runs)


def columns(taken: list[list[Run]]) -> list[list[float]]:
    """Seconds of each command, turn by turn."""
    return [seconds(list(runs)) for runs in zip(*taken, strict=True)]


def bench_layer(folder: Path) -> Iterator[Row]:
    """One layer of 7B shape against the published algorithm, and its direction against dense."""
    shape = replace(shapes.LLAMA2_7B, layers=2)
    with built(folder, "layer", shape) as model:
        checkpoint = open_checkpoint(model)
        block = load_block(checkpoint, shape.explosion)
        saved = model / "signature.safetensors"
        one = f"{shape.explosion}"
        paper = model / "paper.safetensors"
        run(sign(model, "--layers", one, "--fit", "paper", "--output", str(paper)))
        scope = Scope(layers=(shape.explosion,))
        signing, alone, published = [], [], []
        for _ in range(_TURNS):
            signing.append(run(sign(model, "--layers", one, "--output", str(saved))).seconds)
            # As the published algorithm is measured: libraries loaded, the weights in memory.
            with mock.patch.object(measuring, "LARGE_MODEL", 0):
                alone.append(
                    best(
                        lambda: measuring.measure(checkpoint, Fit(), eigenpairs=None, scope=scope),
                        3,
                    )
                )
            theirs = published_layer(block, samples=_PUBLISHED_SAMPLES // _SHARE, driver="gelsy")
            published.append(_SHARE * (theirs.sampling + theirs.least_squares) + theirs.svd)
        dense = torch.from_numpy(_dense(block))
        exact = torch.linalg.svd(dense)[0][:, 0].numpy()
        found, found_paper = _u(saved), _u(paper)
    parts = f"{_SHARE} times {theirs.sampling:.0f} + {theirs.least_squares:.0f}; {theirs.svd:.0f}"
    yield (
        "one 7B-shaped layer, published algorithm to `ckpt sign`, libraries loaded",
        "at least 300",
        f"{ratios(published, alone)}: {spread(published)} to {spread(alone)}; the former is, "
        f"samples and least squares at {_PUBLISHED_SAMPLES // _SHARE:,} vectors, SVDs: {parts}",
    )
    yield (
        "the same, `ckpt sign` as a process",
        "",
        f"{ratios(published, signing)}: to {spread(signing)}",
    )
    yield (
        "its direction against the dense SVD of the closed form",
        "within 0.1 degree",
        f"{_angle(found, exact):.4f} degrees (published algorithm to `--fit paper`: "
        f"{_angle(found_paper, theirs.direction):.2f})",
    )


def _dense(block: Block) -> np.ndarray:
    """L as a matrix, by torch's products of the block's own maps."""
    operator = block_map(block, Fit())
    a, f = operator.steps[0].branches[0], operator.ffn
    eye = torch.eye(a.shape[0])
    first = eye + torch.from_numpy(a.output) @ torch.from_numpy(a.value)
    return ((eye + torch.from_numpy(f.down) @ torch.from_numpy(f.f1)) @ first).numpy()


def _u(saved: Path) -> np.ndarray:
    from ckptforensics import load_result

    return load_result(saved).u[0]


def _angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between two lines, by the part of one that is not along the other."""
    u, v = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64)) for x in (one, other))
    along = float(u @ v)
    return float(np.degrees(np.arctan2(np.linalg.norm(u - along * v), abs(along))))


def bench_model(folder: Path) -> Iterator[Row]:
    """A whole 7B model from a cold cache against reading its files once."""
    with built(folder, "7b", shapes.LLAMA2_7B) as model:
        files = weights(model)
        size = sum(file.stat().st_size for file in files)
        reads, signs, plain = [], [], []
        for _ in range(_TURNS):
            drop_from_cache(files)
            reads.append(read_once(files))
            drop_from_cache(files)
            signs.append(run(sign(model)))
            drop_from_cache(files)
            plain.append(run(sign(model), **NO_NUMBA))
        warm = [run(sign(model)) for _ in range(_TURNS)]
    yield (
        f"32 layers of 7B shape, {size / GB:.1f} GB BF16: `ckpt sign` to `cat`, both cold",
        "at most 1.6",
        f"{ratios(seconds(signs), reads)}: {spread(seconds(signs))} to {spread(reads)}; "
        f"from a warm cache {spread(seconds(warm))}",
    )
    yield "peak resident set for it", "under 1.5 GB", f"{peak(signs) / GB:.2f} GB"
    yield (
        "the same without numba",
        "at most 2.5",
        f"{ratios(seconds(plain), reads)}: {spread(seconds(plain))}, {peak(plain) / GB:.2f} GB",
    )


def bench_large(folder: Path) -> Iterator[Row]:
    """Two layers of 70B shape: memory."""
    shape = shapes.Shape(8192, 28672, 2, kv_share=8)
    with built(folder, "70b", shape) as model:
        signed, plain = run(sign(model)), run(sign(model), **NO_NUMBA)
    peaks = f"{signed.peak / GB:.2f} GB; without numba {plain.peak / GB:.2f} GB"
    yield "peak resident set, 70B-shaped layers", "under 5 GB", peaks


def bench_depth(folder: Path) -> Iterator[Row]:
    """Seconds against the number of layers, which repeat: random ones differ in their work."""
    depths = (8, 16, 32)
    with ExitStack() as stack:
        models = [
            stack.enter_context(built(folder, f"depth{n}", shapes.Shape(2048, 5504, n, period=8)))
            for n in depths
        ]
        for model in models:
            run(sign(model))
        # Differences of one turn: the machine's speed changes from one minute to the next.
        slopes = [
            ((some.seconds - few.seconds) / 8, (many.seconds - some.seconds) / 16)
            for few, some, many in turns([sign(model) for model in models], 9)
        ]
    low, high = (list(part) for part in zip(*slopes, strict=True))
    yield (
        "seconds a layer from 16 to 32 layers, to those from 8 to 16 (width 2048), 9 turns",
        "equal within 10%",
        f"{ratios(high, low)}: {median(high):.3f} to {median(low):.3f} s",
    )


def bench_width(folder: Path) -> Iterator[Row]:
    """Seconds a byte of layers against the width: what half of them takes is taken off."""
    sizes: dict[int, float] = {}
    with ExitStack() as stack:
        commands = []
        for hidden, layers in ((1024, 64), (2048, 16), (4096, 8), (8192, 2), (16384, 1)):
            ffn = hidden * 43 // 16 // 64 * 64
            shape = shapes.Shape(hidden, ffn, layers, vocabulary=1000, plain=True)
            sizes[hidden] = 2 * layers * shape.layer_parameters / GB
            model = stack.enter_context(built(folder, "width", shape))
            run(sign(model))
            if layers > 1:
                commands.append(sign(model, "--layers", f"1-{layers // 2}"))
            commands.append(sign(model))
        rates = [_rates(seconds(each), sizes) for each in turns(commands, _TURNS)]
    yield (
        "seconds a GB of layers (start taken off), the slowest of the widths to the fastest",
        "within 1.5 times",
        ratios([max(rate) for rate in rates], [min(rate) for rate in rates])
        + "; "
        + ", ".join(
            f"{hidden}: {median(each):.2f}"
            for hidden, each in zip(sizes, zip(*rates, strict=True), strict=True)
        ),
    )


def _rates(spent: list[float], sizes: dict[int, float]) -> list[float]:
    """Seconds a GB of each width, of one turn: half the layers and all, the last model all."""
    *pairs, last = spent
    halves, wholes = pairs[::2], pairs[1::2]
    rates = [
        2 * (whole - half) / size
        for half, whole, size in zip(halves, wholes, sizes.values(), strict=False)
    ]
    start = 2 * halves[-1] - wholes[-1]  # of one layer the start of the model before
    return [*rates, (last - start) / list(sizes.values())[-1]]


def bench_gguf(folder: Path) -> Iterator[Row]:
    """GGUF Q4_K against BF16 of the same shape."""
    shape = replace(shapes.LLAMA2_7B, layers=4)
    with (
        built(folder, "bf16", shape) as model,
        tempfile.TemporaryDirectory(dir=folder, prefix="q4k-") as made,
    ):
        quantized = shapes.write_q4_k(Path(made) / "q4_k.gguf", shape)
        for warm in (model, quantized):
            run(sign(warm))
        bf16, q4k = columns(turns([sign(model), sign(quantized)], _TURNS))
    yield (
        "GGUF Q4_K to BF16, 4 layers of 7B shape, warm",
        "at most 2",
        f"{ratios(q4k, bf16)}: {spread(q4k)} to {spread(bf16)}",
    )


def bench_layers(folder: Path) -> Iterator[Row]:
    """`ckpt layers` against `ckpt sign`."""
    with built(folder, "layers", replace(shapes.LLAMA2_7B, layers=4)) as model:
        run(sign(model))
        both = [sign(model), ckpt("layers", str(model), "--quiet")]
        signed, found = columns(turns(both, _TURNS))
    yield (
        "`ckpt layers` to `ckpt sign`, 4 layers of 7B shape, warm",
        "at most 1.3",
        f"{ratios(found, signed)}: {spread(found)} to {spread(signed)}",
    )


def bench_rollout(folder: Path) -> Iterator[Row]:
    """All tokens through a layer of 7B shape against plain products of the same sizes."""
    shape = replace(shapes.LLAMA2_7B, layers=1)
    with built(folder, "rollout", shape) as model:
        command = ckpt("norms", str(model), "--tokens", "all", "--quiet", "--format", "json")
        one = ckpt("norms", str(model), "--tokens", "1", "--quiet", "--format", "json")
        generator = np.random.default_rng(0)
        x = generator.standard_normal((shape.vocabulary, shape.hidden), dtype=np.float32)
        wide = generator.standard_normal((shape.hidden, shape.ffn), dtype=np.float32)
        square = np.ascontiguousarray(wide[:, : shape.hidden])
        hidden = x @ wide
        ours, bound = [], []
        for _ in range(_TURNS):
            start, everything = run(one), run(command)
            ours.append(everything.seconds - start.seconds)
            # Value and output maps are square; gate, up and down as large as `wide`.
            plain = 2 * best(lambda: x @ square, 1) + 2 * best(lambda: x @ wide, 1)
            bound.append(plain + best(lambda: hidden @ wide.T, 1))
    yield (
        "rollout of 32,000 tokens (reading the weights taken off) to its plain `A @ B`",
        "at most 2",
        f"{ratios(ours, bound)}: {spread(ours)} to {spread(bound)}",
    )


def bench_start(folder: Path) -> Iterator[Row]:
    """What starting costs."""
    import sys

    saved = folder / "start.safetensors"
    run(ckpt("sign", "fixtures/planted", "--quiet", "--no-cache", "--output", str(saved)))
    bare, helped, shown = columns(
        turns([[sys.executable, "-c", "pass"], ckpt("--help"), ckpt("show", str(saved))], 25)
    )
    saved.unlink()
    for name, bar, once in (("`ckpt --help`", 4, helped), ("`ckpt show`", 20, shown)):
        yield (
            f"{name} to `python -c pass`, 25 turns",
            f"at most {bar}",
            f"{ratios(once, bare)}: {1000 * median(once):.0f} ms to {1000 * median(bare):.0f} ms",
        )


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "start": bench_start,
    "layers": bench_layers,
    "gguf": bench_gguf,
    "depth": bench_depth,
    "width": bench_width,
    "rollout": bench_rollout,
    "large": bench_large,
    "model": bench_model,
    "layer": bench_layer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path, help="where models are built and deleted")
    parser.add_argument("--write", action="store_true", help="also into docs/performance.md")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.write and options.parts:
        parser.error("--write is for all parts: it would leave the others out of the page")
    require_quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        lines = ["| what | measured |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in machine()]
        lines += ["", "| work | bar | median of the ratios (least to greatest) |", "|---|---|---|"]
        click.echo("\n".join(lines))
        for part in options.parts or PARTS:
            for row in PARTS[part](folder):
                lines.append("| " + " | ".join(row) + " |")
                click.echo(lines[-1])
    if options.write:
        fill_page(PAGE, "table", "\n".join(lines))


if __name__ == "__main__":
    main()
