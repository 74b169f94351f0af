"""Where the time of `ckpt sign` goes, stage by stage, beside what memory and cores allow.

    python -m benchmarks.stages MODEL

Wall time of the main thread, in one process; reading ahead overlaps and is timed alone, with the
files in the operating system's cache. The bounds are measured in the same run: bytes moved at the
speed at which a layer's matrices are multiplied with three vectors, and multiplications at that of
a large product. Asserts nothing.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import click
import numpy as np

from benchmarks.common import best, machine, require_quiet
from ckptforensics import open_checkpoint
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.products import FEW, loops_compiled, multiply
from ckptforensics.compute.threads import all_cores
from ckptforensics.findings import measure as measuring
from ckptforensics.layers import load_block
from ckptforensics.linear import BlockMap, FfnMap, Fit
from ckptforensics.linear.folded import FoldedMatrix

Product = Callable[..., Any]
Timed = Callable[[Product, str], Product]
STAGES = {
    "ckptforensics.layers.stream.load_block": "decode",
    "ckptforensics.findings.measure.block_map": "fold",
    "ckptforensics.findings.measure.advance": "rollout",
    "ckptforensics.findings.measure.trigger": "probes",
    "ckptforensics.findings.measure.response": "probes",
    "ckptforensics.findings.measure.singular_triplets": "spectra",
    "ckptforensics.findings.measure.joint_triplets": "spectra",
}


def stored(matrix: Any) -> int:
    """Bytes that a product with it reads."""
    if isinstance(matrix, FoldedMatrix):
        return sum(stored(term) for term, _ in matrix.terms)
    return matrix.words.nbytes if isinstance(matrix, Bf16Matrix) else matrix.nbytes


class Counted:
    """An operator whose products are timed, and the bytes that they read counted."""

    def __init__(self, operator: FfnMap | BlockMap, timed: Timed, count: Callable[[int], None]):
        self.shape = operator.shape
        ffn = operator.ffn if isinstance(operator, BlockMap) else operator
        once = stored(ffn.f1) + stored(ffn.down)
        if isinstance(operator, BlockMap):
            attention = operator.steps[0].branches[0]
            once += stored(attention.value) + stored(attention.output)
        # There and back reads W_down once where it is kept in BF16.
        saved = stored(ffn.down) if isinstance(ffn.down, Bf16Matrix) else 0
        reads = {"rmatmat": once, "round_trip": 2 * once - saved}
        for name, read in reads.items():
            for method in (name, f"{name}_along"):
                if hasattr(operator, method):
                    product = self._counted(getattr(operator, method), read, count)
                    setattr(self, method, timed(product, "products"))

    @staticmethod
    def _counted(product: Product, read: int, count: Callable[[int], None]) -> Product:
        def counted(*vectors: Any) -> Any:
            count(read)
            return product(*vectors)

        return counted


def main() -> None:
    require_quiet()
    checkpoint = open_checkpoint(sys.argv[1])
    # As `sign` reads it: a large model in BF16 is kept as it is stored, where numba is installed.
    block = load_block(checkpoint, 1, keep=True)
    ffn, attention = block.ffn, block.attention
    matrices = [attention.value, attention.output, ffn.gate, ffn.up, ffn.down]
    kept = isinstance(ffn.up.matrix, Bf16Matrix)
    seconds: dict[str, float] = defaultdict(float)
    multiplied: list[int] = []

    def timed(function: Product, stage: str) -> Product:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if stage == "spectra":
                arguments = tuple(Counted(one, timed, multiplied.append) for one in arguments)
            begun = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[stage] += time.perf_counter() - begun

        return wrapper

    measuring.measure(checkpoint, Fit(), eigenpairs=None)  # fills caches
    checkpoint = open_checkpoint(sys.argv[1])  # does not know yet which weights are finite
    with ExitStack() as stack:
        for target, stage in STAGES.items():
            module, _, name = target.rpartition(".")
            original = getattr(sys.modules[module], name)
            stack.enter_context(mock.patch(target, timed(original, stage)))
        begun = time.perf_counter()
        measuring.measure(checkpoint, Fit(), eigenpairs=None)
        total = time.perf_counter() - begun
    seconds["orthogonalise"] = seconds.pop("spectra") - seconds["products"]
    seconds["rest"] = total - sum(seconds.values())

    layers = checkpoint.architecture.layers
    weights = sum(linear.matrix.size for linear in matrices)
    up = ffn.up.matrix
    generator = np.random.default_rng(0)
    # All matrices in turn: one alone would be found in the cache.
    pairs = [
        (m.matrix, generator.standard_normal((m.matrix.shape[1], FEW), dtype=np.float32))
        for m in matrices
    ]
    many = generator.standard_normal((up.shape[1], 68), dtype=np.float32)
    with all_cores(), loops_compiled(True):
        size = sum(stored(m) for m, _ in pairs)
        bandwidth = size / best(lambda: [multiply(m, x) for m, x in pairs], 9)
        decoded = ffn.up.weight
        flops = 2 * up.size * 68 / best(lambda: multiply(decoded, many), 9)
    names = {name for plan in layers for name, _ in plan.names()}
    begun = time.perf_counter()
    checkpoint.store.prefetch(names)
    seconds["read ahead (beside)"] = time.perf_counter() - begun
    count = len(layers)
    bounds = {
        # Kept: read once, to see that it is finite; else read and four bytes written each.
        "decode": (weights * (2 if kept else 6), bandwidth),
        # Gate and up once for their moments and the heaviest neuron; else twice, and F1.
        "fold": (up.size * (4 if kept else 20), bandwidth),
        "rollout": (2 * weights * 68, flops),
        "products": (sum(multiplied) / count, bandwidth),
    }
    click.echo("| what | measured |\n|---|---|")
    for name, text in machine():
        click.echo(f"| {name} | {text} |")
    speeds = f"{bandwidth / 1e9:.0f} GB/s, {flops / 1e9:.0f} Gflop/s"
    click.echo(f"| speed of memory, of products | {speeds} |")
    click.echo("\n| stage | ms a layer | bound | distance |\n|---|---|---|---|")
    for stage, spent in seconds.items():
        each = spent / count
        bound = distance = ""
        if stage in bounds:
            work, speed = bounds[stage]
            bound, distance = f"{1000 * work / speed:.0f} ms", f"{each * speed / work:.1f}"
        click.echo(f"| {stage} | {1000 * each:.0f} | {bound} | {distance} |")
    click.echo(f"| all | {1000 * total / count:.0f} | | |")


if __name__ == "__main__":
    main()
