"""Verdicts on models whose lineage is known: the tables of docs/lineage-measurements.md.

    python -m benchmarks.lineage_zoo                     the zoo, every pair
    python -m benchmarks.lineage_zoo --real              versions of SmolLM2 (downloads it)
    python -m benchmarks.lineage_zoo --write             also into docs/lineage-measurements.md

Asserts nothing: tests/lineage/test_zoo.py does.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy import stats

from benchmarks.common import fill_page, machine
from ckptforensics.compute.threads import all_cores
from ckptforensics.lineage.compare import compare, compare_pair, open_model
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.results import PairRecord
from ckptforensics.results.comparison import RELATIVES
from tools import launder, transforms
from tools.smollm2 import cached_hf_layout
from tools.zoo import RELATIONS, Direction, Kind, Relation, Verdict, zoo

DOCS = Path(__file__).parents[1] / "docs" / "lineage-measurements.md"


def fill(name: str, text: str) -> None:
    """Put a table between its markers in docs/lineage-measurements.md."""
    fill_page(DOCS, name, text)


def verdict_of(expected: Relation, models: dict[str, Model]) -> PairRecord:
    """What a comparison of the two says, together with the models it needs to see."""
    a, b = models[expected.a], models[expected.b]
    if not expected.given:
        return compare_pair(Pair(a, b))
    others = [models[name] for name in expected.given if name not in (expected.a, expected.b)]
    document = compare([a, b, *others])
    return next(p for p in document.pairs if {p.a, p.b} == {a.name, b.name})


def agrees(expected: Relation, found: PairRecord) -> bool:
    """Whether the verdict is the expected one, and kind and direction where these are defined."""
    if found.verdict != expected.verdict:
        return False
    if expected.kind is not None and found.relation != expected.kind:
        return False
    return expected.direction in ("unknown", found.direction.arrow)


def statistic(record: PairRecord, name: str) -> float | None:
    """The statistic of one test."""
    return next((test.statistic for test in record.tests if test.name == name), None)


def strongest(record: PairRecord) -> float | None:
    """The smallest log10 p of the exact criteria."""
    values = [t.log10_p for t in record.tests if t.group == "exact" and t.log10_p is not None]
    return min(values, default=None)


def row(expected: Relation, found: PairRecord, seconds: float) -> str:
    """One line of a table."""

    def said(verdict: str, kind: str | None, direction: str) -> str:
        arrow = "" if direction == "unknown" else f" {direction}"
        return verdict + (f": {kind}" if kind else "") + arrow

    f, p = statistic(found, "neuron agreement on tokens"), strongest(found)
    cells = [
        expected.a,
        expected.b,
        said(expected.verdict, expected.kind, expected.direction),
        said(found.verdict, found.relation, found.direction.arrow),
        "yes" if agrees(expected, found) else "**no**",
        "-" if f is None else f"{f:.3f}",
        "-" if p is None else f"{p:.1f}",
        "-" if found.distance_deg is None else f"{found.distance_deg:.1f}",
        found.alignment.kind,
        f"{seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| A | B | expected | found | agree | f | log10 p | distance | map | s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def zoo_rows(
    folder: Path, wanted: Callable[[Relation], bool]
) -> Iterator[tuple[Relation, PairRecord, float]]:
    """Every relation of the zoo that is wanted, with what is found and the seconds it takes."""
    models = {name: open_model(path) for name, path in zoo(folder).items()}
    for name, model in models.items():
        model.name = name
    with all_cores():
        for expected in filter(wanted, RELATIONS):
            begun = time.perf_counter()
            found = verdict_of(expected, models)
            yield expected, found, time.perf_counter() - begun


def summary(rows: Sequence[tuple[Relation, PairRecord, float]]) -> str:
    """How many of each expected verdict are found, and what they are taken for otherwise."""
    expected = Counter(relation.verdict for relation, _, _ in rows)
    lines = [
        "| expected | pairs | verdict agrees | kind and direction too | else |",
        "|---|---|---|---|---|",
    ]
    for verdict, count in expected.items():
        own = [(r, p) for r, p, _ in rows if r.verdict == verdict]
        right = sum(p.verdict == verdict for _, p in own)
        full = sum(agrees(r, p) for r, p in own)
        other = Counter(p.verdict for _, p in own if p.verdict != verdict)
        words = ", ".join(f"{n} {name}" for name, n in other.items()) or "-"
        lines.append(f"| {verdict} | {count} | {right} | {full} | {words} |")
    relatives = [p for r, p, _ in rows if r.verdict in RELATIVES]
    independent = [p for r, p, _ in rows if r.verdict == "independent"]
    missed = sum(p.verdict not in RELATIVES for p in relatives)
    wrong = sum(p.verdict in RELATIVES for p in independent)
    lines.append("")
    lines.append(
        f"{len(relatives) - missed} of {len(relatives)} pairs of relatives are found, "
        f"{wrong} of {len(independent)} pairs of independent models are taken for relatives."
    )
    return "\n".join(lines)


STATISTICS: dict[str, Callable[[PairRecord], float | None]] = {
    "neuron agreement on tokens": lambda pair: statistic(pair, "neuron agreement on tokens"),
    "neuron agreement on directions": lambda pair: statistic(
        pair, "neuron agreement on directions"
    ),
    "exact criteria, -log10 p": lambda pair: None if (p := strongest(pair)) is None else -p,
    "smallest angle (the paper's distance)": lambda pair: (
        None if pair.distance_deg is None else -pair.distance_deg
    ),
}


def roc(rows: Sequence[tuple[Relation, PairRecord, float]], drawing: Path | None) -> str:
    """How well each statistic tells relatives from independent models: a table and a drawing."""
    lines = [
        "| statistic | relatives, independent | area under the curve | found without a false one |",
        "|---|---|---|---|",
    ]
    curves = {}
    for name, value in STATISTICS.items():
        told = [(value(pair), relation.verdict in RELATIVES) for relation, pair, _ in rows]
        own = np.array([x for x, related in told if related and x is not None])
        other = np.array([x for x, related in told if not related and x is not None])
        area = stats.mannwhitneyu(own, other).statistic / (own.size * other.size)
        found = float((own > other.max()).mean())
        lines.append(f"| {name} | {own.size}, {other.size} | {area:.4f} | {found:.1%} |")
        limits = np.sort(np.concatenate([own, other]))[::-1]
        curves[name] = (
            [0.0, *((other >= limit).mean() for limit in limits)],
            [0.0, *((own >= limit).mean() for limit in limits)],
        )
    if drawing is not None:
        _draw(curves, drawing)
    return "\n".join(lines)


def _draw(curves: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ckptforensics"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, (false, true) in curves.items():
        axes.step(false, true, where="post", label=name)
    axes.set_xlabel("share of independent models taken for relatives")
    axes.set_ylabel("share of relatives found")
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


@dataclass(frozen=True)
class Version:
    """A version of SmolLM2: what makes it, its stored type, and the expected comparison with it."""

    make: Callable[[transforms.Model], transforms.Model]
    dtype: str
    verdict: Verdict
    kind: Kind | None = None
    direction: Direction = "unknown"


# The weights at hand are those of a Q4_1 file, so they lie on a grid already, and who was rounded
# first cannot be seen.
REAL: dict[str, Version] = {
    "int8": Version(transforms.int8, "F16", "derived", "quantized"),
    "q4": Version(transforms.q4, "F16", "derived", "quantized"),
    "prune50": Version(transforms.prune, "BF16", "derived", "pruned", "a->b"),
    "prune24": Version(transforms.prune_2_of_4, "BF16", "derived", "pruned", "a->b"),
    "drop-layer": Version(transforms.drop_layer, "BF16", "derived", "depth-changed"),
    "upscaled": Version(transforms.upscale, "BF16", "derived", "depth-changed"),
    "narrow": Version(transforms.narrow, "BF16", "derived", "width-changed"),
    "narrow-ffn": Version(transforms.narrow_ffn, "BF16", "derived", "width-changed"),
    "vocabulary": Version(transforms.extend_vocabulary, "BF16", "derived", None, "a->b"),
    "experts": Version(transforms.upcycle, "BF16", "derived", "upcycled", "a->b"),
    "redrawn-embeddings": Version(transforms.redraw_embeddings, "BF16", "derived"),
    "noise 2%": Version(lambda base: launder.noise(base, 0.02), "BF16", "derived", "finetune"),
    "random": Version(transforms.random, "BF16", "independent"),
}


def real_rows(
    folder: Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[Relation, PairRecord, float]]:
    """SmolLM2 against each of its versions, which are made one at a time."""
    source = cached_hf_layout()
    base = open_model(source)
    base.name = "SmolLM2"
    base.sign()
    for number, (name, version) in enumerate(REAL.items()):
        if not wanted(name):
            continue
        model = version.make(transforms.read(source))
        path = transforms.write(model, folder / f"version-{number}", version.dtype)
        del model
        model = open_model(path)
        model.name = name
        model.sign()
        with all_cores():
            begun = time.perf_counter()
            found = compare_pair(Pair(base, model))
        seconds = time.perf_counter() - begun
        shutil.rmtree(path)
        expected = Relation("SmolLM2", name, version.verdict, version.kind, version.direction)
        yield expected, found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="versions of SmolLM2")
    parser.add_argument("--only", help="pairs with this model alone")
    parser.add_argument("--write", action="store_true", help="also into the page")
    options = parser.parse_args()

    def wanted(relation: Relation) -> bool:
        return options.only in (None, relation.a, relation.b)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.real:
            source = real_rows(folder, lambda name: options.only in (None, name))
        else:
            source = zoo_rows(folder, wanted)
        click.echo(HEAD)
        rows = []
        for found in source:
            rows.append(found)
            click.echo(row(*found))
    text = [f"{name}: {value}" for name, value in machine()]
    table = "\n".join([HEAD, *(row(*found) for found in rows)])
    short = summary(rows)
    click.echo(f"\n{short}\n\n" + "; ".join(text))
    if options.write:
        name = "real" if options.real else "zoo"
        fill(f"{name}-summary", short + "\n\n" + "; ".join(text) + ".")
        fill(name, table)
    if not options.real:
        curves = roc(rows, DOCS.parent / "lineage-roc.svg" if options.write else None)
        click.echo(curves)
        if options.write:
            fill("roc", curves)


if __name__ == "__main__":
    main()
