"""How alike models are that share all but their initialisation: calibration of the criteria.

    python -m tools.make_independent DIR --size small --count 24
    python -m tools.make_independent DIR --size large --count 18
    python -m benchmarks.lineage_independent DIR [--part angle] [--write]

Of all pairs of one size: the p-values of the exact criteria (benchmarks/lineage_null.py), and
neuron agreement f of all neurons on all layers, also after half of the training. Of made-up
directions near one coordinate: how often the smallest angle takes independent models for
relatives. With --write the tables go into docs/lineage-measurements.md and the distribution of f to
docs/lineage-agreement.svg.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from scipy import stats

from benchmarks import lineage_null
from benchmarks.common import machine
from benchmarks.lineage_zoo import DOCS, fill
from ckptforensics.compute.threads import all_cores
from ckptforensics.lineage.correspondence.neurons import layer_agreement, token_states
from ckptforensics.lineage.criteria import directions
from ckptforensics.lineage.criteria.criterion import Outcome
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tests.support.signatures import signature, unit

SIZES = ("small", "large")
# Degrees below which the paper would call two models relatives: fine-tunes are within a few.
SMALL_ANGLE = 10.0


def models(folder: Path, size: str, *, half: bool = False) -> list[Model]:
    """The trained models of one size, at the end of their training or half-way."""
    paths = sorted(folder.glob(f"{size}-*"))
    return [lineage_null.opened(path) for path in paths if path.name.endswith("-half") == half]


def agreements(models: list[Model]) -> dict[int, list[float]]:
    """f of every pair by layer, of all neurons on 2,048 shared tokens."""
    found = defaultdict(list)
    for a, b in combinations(models, 2):
        pair = Pair(a, b, "thorough")
        states, _ = token_states(pair, pair.effort.tokens)
        for layer in a.layers:
            f = layer_agreement(pair, (layer, layer), states, units=pair.effort.neurons)
            found[layer].append(f)
    return found


def one_coordinate(
    width: int, layers: int = 30, pairs: int = 600
) -> tuple[float, float, float, float]:
    """Independent models whose directions are near one coordinate each, drawn at random.

    Returns
    -------
    Share of pairs below the small angle, 1 / width, and the share of pairs with an exact
    p <= 0.001 of the largest and of the sum of squared cosines
    """
    generator = np.random.default_rng(width)
    made = []
    for _ in range(round((2 * pairs) ** 0.5) + 1):
        u = 0.07 * generator.standard_normal((layers, width)) / width**0.5
        # Half of the layers follow the massive coordinate, as in SmolLM2.
        u[: layers // 2, generator.integers(width)] += 1
        made.append(Model("made up", None, signature=signature(unit(u))))
    tests = {test.name: test for test in directions.CRITERIA}
    near, low = [], defaultdict(list)
    for a, b in list(combinations(made, 2))[:pairs]:
        pair = Pair(a, b, "fast", seed=len(near))
        nearest = directions.distance(pair)
        assert nearest is not None
        near.append(nearest[0] < SMALL_ANGLE)
        for name in ("direction max", "direction sum"):
            log10_p = tests[name].run(pair).log10_p
            assert log10_p is not None
            low[name].append(log10_p <= -3)
    return float(np.mean(near)), 1 / width, *(float(np.mean(x)) for x in low.values())


def draw(found: dict[tuple[str, bool], dict[int, list[float]]], path: Path) -> None:
    """The distribution of f by layer, width and length of training."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ckptforensics"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    values, names = [], []
    for (size, half), layers in found.items():
        for layer, f in layers.items():
            values.append(f)
            names.append(f"{size}\n{'half' if half else 'whole'}\n{layer}")
    axes.boxplot(values, whis=(0, 100), tick_labels=names, widths=0.6)
    axes.axhline(0.15, color="tab:red", linewidth=1, label="'inconclusive' from here")
    axes.set_ylabel("neuron agreement f")
    axes.set_xlabel("size, length of training, layer")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def exact_table(sizes: dict[str, list[Model]], orders: int) -> list[str]:
    """P-values and fixed points of the exact criteria, over the pairs of all sizes."""
    whole: dict[str, list[tuple[Outcome, int]]] = defaultdict(list)
    for models in sizes.values():
        for name, outcomes in lineage_null.outcomes(models, "default", orders).items():
            whole[name] += outcomes
    counts = [f"{len(s)} {size} ({len(s) * (len(s) - 1) // 2} pairs)" for size, s in sizes.items()]
    return [
        f"Models: {', '.join(counts)}.",
        "",
        "| criterion | pairs | uniform (KS p) | fixed points: mean, variance | "
        "p <= 0.001 (chance) | share p <= 0.05 | smallest p |",
        "|---|---|---|---|---|---|---|",
        *(lineage_null.row(name, values) for name, values in whole.items()),
        "",
        "; ".join(f"{name}: {value}" for name, value in machine()) + ".",
    ]


def agreement_table(folder: Path, sizes: dict[str, list[Model]], drawing: Path | None) -> list[str]:
    """Neuron agreement by size, length of training and layer."""
    found: dict[tuple[str, bool], dict[int, list[float]]] = {}
    for size, models in sizes.items():
        found[size, True] = agreements(models(folder, size, half=True))
        found[size, False] = agreements(models)
    table = [
        "| size | training | layer | pairs | mean f | 99 % | largest f |",
        "|---|---|---|---|---|---|---|",
    ]
    for (size, half), layers in found.items():
        for layer, f in layers.items():
            table.append(
                f"| {size} | {'half' if half else 'whole'} | {layer} | {len(f)} | "
                f"{np.mean(f):.4f} | {np.quantile(f, 0.99):.3f} | {max(f):.3f} |"
            )
    ends = {key: [x for f in layers.values() for x in f] for key, layers in found.items()}
    for size in sizes:
        p = stats.mannwhitneyu(ends[size, True], ends[size, False]).pvalue
        table.append(
            f"\n{size}: mean f {np.mean(ends[size, True]):.4f} after half of the training, "
            f"{np.mean(ends[size, False]):.4f} at its end (Mann-Whitney p {p:.2g})."
        )
    if drawing is not None:
        draw(found, drawing)
    return table


def angle_table() -> list[str]:
    """How often the smallest angle and exact criteria take made-up models for relatives."""
    rows = []
    for width in (64, 128, 256):
        near, chance, largest, total = one_coordinate(width)
        rows.append(f"| {width} | {near:.4f} | {chance:.4f} | {largest:.4f} | {total:.4f} |")
    return [
        f"| width | pairs closer than {SMALL_ANGLE:.0f} degrees | 1 / width | "
        "direction max, p <= 0.001 | direction sum, p <= 0.001 |",
        "|---|---|---|---|---|",
        *rows,
    ]


PARTS = ("calibration", "agreement", "angle")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS)
@click.option("--write", is_flag=True, help="also into docs/lineage-measurements.md")
@click.option("--orders", default=999, help="random orders of a test, 4,999 in a comparison")
def main(folder: Path, parts: tuple[str, ...], write: bool, orders: int) -> None:
    """Print the tables."""
    drawing = DOCS.parent / "lineage-agreement.svg" if write else None
    with all_cores():
        sizes = {} if parts == ("angle",) else {size: models(folder, size) for size in SIZES}
        tables: dict[str, Callable[[], list[str]]] = {
            "calibration": lambda: exact_table(sizes, orders),
            "agreement": lambda: agreement_table(folder, sizes, drawing),
            "angle": angle_table,
        }
        for part in parts:
            text = "\n".join(tables[part]())
            click.echo(text + "\n")
            if write:
                fill(part, text)


if __name__ == "__main__":
    main()
