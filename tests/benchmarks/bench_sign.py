"""Time of `ckpt sign` against the published algorithm, and of `ckpt --help` against bare Python.

    python -m tests.benchmarks.bench_sign                 3 layers of the published algorithm
    python -m tests.benchmarks.bench_sign --all-layers    all of them
    python -m tests.benchmarks.bench_sign --driver gels   its least squares by unpivoted QR

Everything is measured in one run on one machine, the two sides in turn, and printed as a markdown
table. Nothing is asserted: times of a shared machine are evidence, not a test.

The published algorithm, per layer: 100,000 vectors n ~ N(0, I), the FFN's hidden activation y(n),
least squares for F1 in y = F1 n, then the dense SVD of I + A, I + F and L = (I + F)(I + A). It gets
its weights as torch tensors in memory; reading and dequantizing them is not counted for it, while
`ckpt sign` is timed as a process, interpreter start and reading included.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from ckptforensics import load_result, open_checkpoint
from ckptforensics.layers import Block, load_block
from fixtures.smollm2 import gguf_file

SPREAD = (3, 12, 29)


@dataclass(frozen=True)
class Published:
    """What the published algorithm took for one layer, and the direction it found."""

    layer: int
    sampling: float
    least_squares: float
    svd: float
    cpu: float
    direction: np.ndarray

    @property
    def seconds(self) -> float:
        return self.sampling + self.least_squares + self.svd


def published_layer(block: Block, samples: int, driver: str) -> Published:
    """Run the published algorithm on one block of a LLaMA-like model."""
    attention, ffn = block.attention, block.ffn
    assert ffn.gate is not None and ffn.activation == "silu"
    weight = torch.from_numpy
    width = ffn.norm.gain.size

    cpu = time.process_time()
    begun = time.perf_counter()
    n = torch.randn(samples, width)
    y = torch.nn.functional.silu(n @ weight(ffn.gate.weight).T) * (n @ weight(ffn.up.weight).T)
    sampled = time.perf_counter()
    f1 = torch.linalg.lstsq(n, y, driver=driver).solution.T
    solved = time.perf_counter()
    value = weight(attention.value.weight)
    heads = value.view(-1, attention.head_dim, width)
    value = heads.repeat_interleave(attention.repeats, dim=0).reshape(-1, width)
    eye = torch.eye(width)
    a = weight(attention.output.weight) @ value @ torch.diag(weight(attention.norm.gain)) + eye
    f = weight(ffn.down.weight) @ f1 @ torch.diag(weight(ffn.norm.gain)) + eye
    torch.linalg.svd(a)
    torch.linalg.svd(f)
    u, _, _ = torch.linalg.svd(f @ a)
    done = time.perf_counter()
    return Published(
        layer=block.layer,
        sampling=sampled - begun,
        least_squares=solved - sampled,
        svd=done - solved,
        cpu=time.process_time() - cpu,
        direction=u[:, 0].numpy(),
    )


def process_seconds(command: list[str]) -> float:
    """Wall time of one process, start and end included."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def children_cpu() -> float:
    """Processor time of all ended child processes, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def load() -> str:
    """Average number of runnable processes of the last minute, where it is known."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def blas_threads() -> str:
    """Threads of NumPy's BLAS as its library reports them."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return os.environ.get("OPENBLAS_NUM_THREADS", "the library's default")
    pools = {
        f"{pool['internal_api']} {pool['version']}: {pool['num_threads']}"
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return ", ".join(sorted(pools)) or "none found"


def processor() -> str:
    """The processor's name, where the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
    parser.add_argument("--sign-runs", type=int, default=5)
    parser.add_argument("--start-runs", type=int, default=25)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model = gguf_file()
    checkpoint = open_checkpoint(model)
    total = checkpoint.architecture.sizes.num_layers
    layers = [int(n) for n in options.layers.split(",")]
    if options.all_layers:
        layers = list(range(1, total + 1))
    ckpt = [sys.executable, "-m", "ckptforensics"]
    script = Path(sys.executable).with_name("ckpt")
    if script.exists():
        ckpt = [str(script)]

    torch.manual_seed(0)
    load_before = load()
    sign = [*ckpt, "sign", str(model), "--quiet"]
    process_seconds(sign)  # fills the page cache and Python's bytecode cache
    published: list[Published] = []
    signed: list[float] = []
    signed_cpu: list[float] = []

    def sign_once() -> None:
        cpu = children_cpu()
        signed.append(process_seconds(sign))
        signed_cpu.append(children_cpu() - cpu)

    for number, layer in enumerate(layers):
        if number < options.sign_runs:
            sign_once()
        published.append(
            published_layer(load_block(checkpoint, layer), options.samples, options.driver)
        )
    while len(signed) < options.sign_runs:
        sign_once()

    helps, bare = [], []
    for _ in range(options.start_runs):
        helps.append(process_seconds([*ckpt, "--help"]))
        bare.append(process_seconds([sys.executable, "-c", "pass"]))

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "paper.safetensors"
        process_seconds([*sign, "--fit", "paper", "--output", str(saved)])
        paper = load_result(saved).u
    angles = [
        np.degrees(np.arccos(min(1.0, abs(float(p.direction @ paper[p.layer - 1])))))
        for p in published
    ]

    ours = statistics.median(signed)
    theirs = sum(p.seconds for p in published) * total / len(published)
    ours_cpu = statistics.median(signed_cpu)
    theirs_cpu = sum(p.cpu for p in published) * total / len(published)
    part = {
        name: statistics.median(getattr(p, name) for p in published)
        for name in ("sampling", "least_squares", "svd")
    }
    which = "all layers" if len(layers) == total else f"layers {', '.join(map(str, layers))}"
    help_median, bare_median = statistics.median(helps), statistics.median(bare)
    rows = [
        ("machine", f"{processor()}, {os.cpu_count()} cores, {platform.system()}"),
        (
            "versions",
            f"Python {platform.python_version()}, NumPy {np.__version__}, "
            f"torch {torch.__version__}",
        ),
        ("load average, start and end", f"{load_before}, {load()}"),
        ("threads", f"NumPy's BLAS {blas_threads()}; torch {torch.get_num_threads()}"),
        ("model", f"{model.name}, {total} layers"),
        (
            "`ckpt sign`, whole process",
            f"median {ours:.2f} s of {len(signed)} ({min(signed):.2f} to {max(signed):.2f})",
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
        ("**ratio, published to `ckpt sign`**", f"**{theirs / ours:.0f}**"),
        (
            "ratio of processor times, all threads",
            f"{theirs_cpu / ours_cpu:.0f} ({theirs_cpu:.0f} s to {ours_cpu:.2f} s)",
        ),
        (
            "angle between its u1 and that of `--fit paper`",
            ", ".join(f"layer {p.layer}: {a:.2f}°" for p, a in zip(published, angles, strict=True)),
        ),
        ("`ckpt --help`", f"median {1000 * help_median:.0f} ms of {len(helps)}"),
        ("`python -c pass`", f"median {1000 * bare_median:.0f} ms of {len(bare)}"),
        ("**ratio, `ckpt --help` to `python -c pass`**", f"**{help_median / bare_median:.1f}**"),
    ]
    click.echo("| what | measured |\n|---|---|")
    for name, text in rows:
        click.echo(f"| {name} | {text} |")


if __name__ == "__main__":
    main()
