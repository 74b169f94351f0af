"""What watching a running model costs: the table of docs/performance.md, 'Running the model'.

    python -m benchmarks.bench_running [MODEL] [--tokens N] [--runs N] [--write]

Seconds: each experiment beside plain forward passes of the same loaded model over the same windows,
taking turns in one process; the prediction from weights alone, which is no forward pass, is not in
them. Memory: the peak of a process that watches less that of one that only runs the model. The bar
for both: 1.3 times the time, and the states of a window at one layer in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

from benchmarks.common import fill_page, machine, ratios, require_quiet, run
from ckptforensics.runtime.experiments.ablate import measure_row
from ckptforensics.runtime.experiments.empirical import empirical
from ckptforensics.runtime.experiments.sinks import ATTENTION, sinks
from ckptforensics.runtime.experiments.trace import branch_norms
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.texts import Text, windows_of
from tools import smollm2

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
WINDOW = 256

Work = Callable[[Runtime, Text], object]


def plain(runtime: Runtime, text: Text) -> None:
    for window in windows_of(runtime, text)[0]:
        runtime.forward([window])


def traced(runtime: Runtime, text: Text) -> None:
    for window in windows_of(runtime, text)[0]:
        branch_norms(runtime, window)


def predicted(runtime: Runtime, text: Text) -> None:
    perplexity(runtime, windows_of(runtime, text)[0])


def ablated(runtime: Runtime, text: Text) -> None:
    measure_row(runtime, windows_of(runtime, text)[0])


# Experiment: it, what it is held against, and transformers' attention for both.
PAIRS: dict[str, tuple[Work, Work, str | None]] = {
    "trace": (traced, plain, None),
    "empirical": (lambda runtime, text: empirical(runtime, text=text), plain, None),
    "sinks": (lambda runtime, text: sinks(runtime, text=text), plain, ATTENTION),
    "a row of ablate": (ablated, predicted, None),
}
BASES = {plain: "forward", predicted: "perplexity"}


def timed(model: Path, text: Text, runs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of the plain passes and of the experiment, turn by turn."""
    found = {}
    for name, (work, base, attention) in PAIRS.items():
        runtime = start(model, attention=attention)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(runs):
            for kept, one in zip(seconds, (base, work), strict=True):
                begun = time.perf_counter()
                one(runtime, text)
                kept.append(time.perf_counter() - begun)
        found[name] = seconds
    return found


def peak(model: Path, text: Text, name: str, *, watching: bool) -> int:
    """Bytes that a process of its own held at most."""
    which = "watching" if watching else "plain"
    part = [name, which, str(model), str(text.limit)]
    return run([sys.executable, "-m", "benchmarks.bench_running", "--part", *part]).peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="by default SmolLM2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="also into the page")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, which, model, tokens = options.part
        work, base, attention = PAIRS[name]
        runtime = start(Path(model), attention=attention)
        (work if which == "watching" else base)(runtime, Text(limit=int(tokens), window=WINDOW))
        return
    require_quiet()
    model = options.model or smollm2.gguf_file()
    text = Text(limit=options.tokens, window=WINDOW)
    lines = [
        "| experiment | beside | plain | watching | ratio | more memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, (bare, watched) in timed(model, text, options.runs).items():
        held, more = (peak(model, text, name, watching=w) for w in (False, True))
        lines.append(
            f"| `{name}` | {BASES[PAIRS[name][1]]} | {median(bare):.2f} s | "
            f"{median(watched):.2f} s | {ratios(watched, bare)} | "
            f"{(more - held) / 2**20:+,.0f} MiB of {held / 2**20:,.0f} |"
        )
        click.echo(lines[-1])
    what = f"{model.name}, {options.tokens:,} tokens in windows of {WINDOW}; "
    lines += ["", what + "; ".join(f"{name}: {value}" for name, value in machine()) + "."]
    if options.write:
        fill_page(PAGE, "running", "\n".join(lines))


if __name__ == "__main__":
    main()
