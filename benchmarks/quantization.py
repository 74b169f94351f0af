"""The table of docs/quantization.md: SmolLM2 or another model rounded in several ways.

    python -m benchmarks.quantization [MODEL] [--result FILE] [--write]
    python -m benchmarks.quantization --cost [MODEL]

Every row of `ckpt quant eval` on its default text, SmoothQuant's alpha from 0.3 to 0.9. An
interrupted run goes on; --result renders a document that `ckpt quant eval -o` saved in place of a
new run. --write puts the table and the drawing into docs/. --cost measures how long a row takes
beside a plain forward pass over the same windows, turn about in one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import click
from scipy.stats import spearmanr

from benchmarks.common import fill_page, machine, processor, ratios, require_quiet, spread
from ckptforensics import SignatureCache, Text, evaluate_quantization, load_result
from ckptforensics.cli.progress import Lines
from ckptforensics.quantities import number, percent, size
from ckptforensics.render import plot_document
from ckptforensics.render.quantized import summaries
from ckptforensics.render.tables.quantized import perplexity_text
from ckptforensics.results.quantization import QuantizationDocument
from ckptforensics.runtime.model import start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.quantization.linears import find_linears
from ckptforensics.runtime.quantization.schemes import Quantized, Scheme
from ckptforensics.runtime.texts import windows_of
from tools.smollm2 import gguf_file

PAGE = Path(__file__).parents[1] / "docs" / "quantization.md"
DRAWING = PAGE.parent / "gallery" / "smollm2-quantization.png"
ALPHAS = tuple(round(0.3 + 0.05 * i, 2) for i in range(13))


def table(document: QuantizationDocument) -> list[str]:
    """The rows of a document, and what ran, as lines of a markdown page."""
    heads = ("row", "kept", "of the weights", "perplexity", "added loss", "taken back", "size")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for s in summaries(document):
        name = f"`{s.row}`" if s.alpha is None else f"`{s.row}`, alpha {s.alpha:g}"
        cells = (
            *(name, "all" if s.row == "none" else str(s.kept), percent(s.share, 1)),
            *(perplexity_text(s), "-" if s.added is None else f"{s.added:+.3f}"),
            *("" if s.taken is None else percent(s.taken), size(s.bytes)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for row in document.rows:
        if row.row in ("rtn+planned", "rtn+calibrated"):
            layers = sorted(int(n.split(".")[2]) + 1 for n in row.kept)
            listed = ", ".join(map(str, layers))
            lines += ["", f"`{row.row}` keeps `down_proj` of layers {listed}."]
    if document.alphas:
        tried = ", ".join(f"{a.alpha:g}: {number(a.perplexity)}" for a in document.alphas)
        lines += ["", f"Perplexity on the calibration text by alpha: {tried}."]
    lines += predicted(document)
    text, ran = document.text, document.running
    lines += [
        "",
        f"Text: {text.source}, {text.tokens:,} of {text.available:,} tokens in windows of "
        f"{text.window}; {document.tokens:,} predicted. {ran.dtype} on {ran.device}, transformers "
        f"{ran.transformers}, torch {ran.torch}; {processor()}, {os.cpu_count()} cores.",
    ]
    return lines


def predicted(document: QuantizationDocument) -> list[str]:
    """Errors of the planned modules on ordinary tokens, and how far off all predictions are."""
    kept = {name for row in document.rows if row.row == "rtn+planned" for name in row.kept}
    lines = ["", "| module | predicted on ordinary tokens | measured |", "|---|---|---|"]
    pairs: dict[str, list[tuple[float, float]]] = {"initial": [], "ordinary": []}
    for p in document.predictions:
        ordinary = (p.predicted[1], p.measured[1])
        if p.module in kept and None not in ordinary:
            shown = (percent(value) for value in ordinary if value is not None)
            lines.append(f"| `{p.module}` | {' | '.join(shown)} |")
        for name, said, found in zip(pairs, p.predicted, p.measured, strict=True):
            if said and found:
                pairs[name].append((said, found))
    lines += ["", f"Predicted over measured, all {len(document.predictions)} modules:"]
    for name, values in pairs.items():
        low, middle, high = statistics.quantiles([a / b for a, b in values], n=10)[::4]
        order = spearmanr(values).statistic
        lines.append(
            f"{name} tokens {middle:.2f} in the median, 80% in {low:.2f} to {high:.2f}, "
            f"rank correlation {order:.2f};"
        )
    lines[-1] = lines[-1].removesuffix(";") + "."
    return lines


def cost(model: Path) -> None:
    """Seconds of rows over those of a plain pass, five times in turns."""
    require_quiet()
    runtime = start(model)
    windows, _ = windows_of(runtime, Text(limit=512))
    linears = find_linears(runtime)
    schemes = {
        "rtn": Scheme(),
        "per-token": Scheme("channel", "token"),
        "rtn+first-token": Scheme(first_apart=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *schemes)}
    for _ in range(5):
        for name in seconds:
            begun = time.perf_counter()
            if name == "plain":
                perplexity(runtime, windows, at_once=1)
            else:
                with Quantized(schemes[name], linears).running():
                    perplexity(runtime, windows, at_once=1)
            seconds[name].append(time.perf_counter() - begun)
    click.echo(f"{len(windows)} windows of {len(windows[0])}; weights are rounded within the time")
    for name, seen in seconds.items():
        click.echo(f"{name}: {spread(seen)}, {ratios(seen, seconds['plain'])} of a plain pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--result", type=Path, help="a saved document in place of a run")
    parser.add_argument("--write", action="store_true", help="also into docs/")
    parser.add_argument("--cost", action="store_true", help="time rows beside a plain pass")
    options = parser.parse_args()
    model = options.model or gguf_file()
    if options.cost:
        cost(model)
    else:
        found = (
            load_result(options.result)
            if options.result
            else evaluate_quantization(
                model, alphas=ALPHAS, progress=Lines(), cache=SignatureCache.of_user()
            )
        )
        assert isinstance(found, QuantizationDocument)
        lines = table(found)
        click.echo("\n".join(lines))
        if options.write:
            fill_page(PAGE, "measured", "\n".join(lines))
            plot_document(found, DRAWING)
    click.echo("; ".join(f"{name}: {value}" for name, value in machine()) + ".")


if __name__ == "__main__":
    main()
