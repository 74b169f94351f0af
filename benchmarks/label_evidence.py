"""The quantities behind the labels, layer by layer, on SmolLM2 or another checkpoint.

    python -m benchmarks.label_evidence [--layers 1,2,3,9,10,11,12,28,29,30] [MODEL]

Prints a markdown table of everything that decides a label (docs/mathematics.md, section 8), for
layers with and without one, and the eigenvalue that is shown beside it. Asserts nothing.
"""

from __future__ import annotations

import argparse

import click

from ckptforensics import Fit, open_checkpoint
from ckptforensics.findings.labels import label
from ckptforensics.findings.measure import LayerMeasurement, measure
from tools.smollm2 import gguf_file

HEADS = (
    "layer",
    "norm before",
    "norm after",
    "ratio",
    "concentration before, after",
    "trigger norm",
    "cosine of its answer with the direction after",
    "cosine of u1 with the direction before, after",
    "gap",
    "added at +c u, share of c",
    "eigenvalue of R, angle",
    "label, strength",
)


def row(m: LayerMeasurement) -> list[str]:
    """The table's cells for one layer of a checkpoint with token embeddings."""
    assert m.before is not None and m.after is not None
    answer = abs(float(m.trigger.output @ m.after.direction)) / m.trigger.norm
    u = m.spectrum.left[:, 0]
    found = label(m)
    eigenvalue = "none"
    if m.eigenvalue is not None:
        imaginary = f" ± {m.eigenvalue.imag:.3g}i" if m.eigenvalue.imag else ""
        eigenvalue = f"{m.eigenvalue.real:+.3g}{imaginary}, {m.eigenvalue.angle_deg:.0f}°"
    probed = "" if m.probed_tokens else " (u1)"
    return [
        str(m.layer),
        f"{m.before.median:,.0f}",
        f"{m.after.median:,.0f}",
        f"{m.after.median / m.before.median:.2f}",
        f"{m.before.concentration:.2f}, {m.after.concentration:.2f}",
        f"{m.trigger.norm:,.0f}",
        f"{answer:.2f}",
        f"{abs(float(u @ m.before.direction)):.2f}, {abs(float(u @ m.after.direction)):.2f}",
        f"{m.spectrum.values[0] / m.spectrum.values[1]:.2f}",
        f"{m.response.plus:+,.0f}, {m.response.plus / m.probe_size:+.2f}{probed}",
        eigenvalue,
        "none" if found.name is None else f"{found.name}, {found.strength:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--layers", default="1,2,3,9,10,11,12,28,29,30", help="or 'all'")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model or gguf_file())
    measured = measure(checkpoint, Fit(), eigenpairs=()).layers
    shown = {m.layer for m in measured}
    if options.layers != "all":
        shown = {int(n) for n in options.layers.split(",")}
    click.echo(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for m in measured:
        if m.layer in shown:
            click.echo(f"| {' | '.join(row(m))} |")


if __name__ == "__main__":
    main()
