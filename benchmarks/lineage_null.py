"""Whether the exact criteria of lineage are calibrated: p-values of models that share nothing.

    python -m benchmarks.lineage_null [DIR ...] [--random 30] [--level default] [--orders 999]
        [--write]

Compares all pairs of models of one configuration in each folder DIR, such as
`tools/make_independent.py` trains (those named `-half` are left out: they are relatives), or pairs
of random models, and prints a markdown table. Under the null a p-value is uniform whatever the
other model is, so pairs that share a model are independent two by two. For tests with random
orders it says the Kolmogorov-Smirnov p against uniformity, for tests by assignment mean and
variance of the fixed points a layer, both 1 for random permutations; for both how many pairs have
p <= 0.001, and whether that many are to be expected. Asserts nothing.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from scipy import stats

from benchmarks.lineage_zoo import fill
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.criteria import assignments, directions, neurons, robust
from ckptforensics.lineage.criteria.criterion import Outcome
from ckptforensics.lineage.effort import EFFORTS
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Level, Pair
from tests.support.models import save, tiny_llama

TESTS = (*directions.CRITERIA, *assignments.CRITERIA)
CHANNELS = (*neurons.CRITERIA, *robust.CRITERIA)
LOW = 1e-3


def random_models(folder: Path, count: int) -> list[Model]:
    """Random models of width 36 and 3 layers."""
    return [opened(save(tiny_llama(seed), folder / str(seed))) for seed in range(count)]


def opened(path: Path) -> Model:
    model = Model(path.name, open_checkpoint(path))
    model.sign()
    return model


def outcomes(
    models: Sequence[Model], level: Level, orders: int
) -> dict[str, list[tuple[Outcome, int]]]:
    """What each test finds on every pair of one width and depth, and on how many layers."""
    found = defaultdict(list)
    for seed, (a, b) in enumerate(combinations(models, 2)):
        effort = replace(EFFORTS[level], orders=(orders, min(orders, 999)))
        pair = Pair(a, b, level, seed=seed, effort=effort)
        if not (pair.same_width and pair.same_depth):
            continue
        ps = []
        for test in TESTS:
            if level not in test.levels:
                continue
            try:
                outcome = test.run(pair)
            except NotApplicable:
                continue
            layers = sum(value is not None for value in outcome.profile)
            found[test.name].append((outcome, max(1, layers)))
            ps.append(outcome)
        found["combined"].append((Outcome(None, log10_p=assignments.combined(ps)), 1))
    return found


def channels(models: Sequence[Model], level: Level) -> dict[str, list[float | None]]:
    """The statistic of every channel on every pair, None where it was not measured."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for seed, (a, b) in enumerate(combinations(models, 2)):
        pair = Pair(a, b, level, seed=seed)
        for test in CHANNELS:
            try:
                found[test.name].append(test.run(pair).statistic)
            except NotApplicable:
                found[test.name].append(None)
    return found


def channel_table(found: dict[str, list[float | None]]) -> list[str]:
    """The largest statistic of each channel, and the limits that it decides by."""
    limits = {test.name: test.limits for test in CHANNELS}
    rows = [
        "| channel | pairs | not measured | 99 % | largest | limits |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in found.items():
        known = np.array([value for value in values if value is not None])
        low, high = limits[name] or (0.0, 0.0)
        told = f"{np.quantile(known, 0.99):.3f} | {known.max():.3f}" if known.size else "- | -"
        missing = len(values) - known.size
        rows.append(f"| {name} | {len(values)} | {missing} | {told} | {low:g}, {high:g} |")
    return rows


def row(name: str, found: Sequence[tuple[Outcome, int]]) -> str:
    p = np.array([10 ** (outcome.log10_p or 0) for outcome, _ in found])
    low = int((p <= LOW).sum())
    chance = stats.binomtest(low, len(p), LOW, alternative="greater").pvalue
    uniform = points = "-"
    if name in {test.name for test in assignments.CRITERIA}:
        counts = np.array([(outcome.statistic or 0) / n for outcome, n in found])
        spread = counts.var() * found[0][1]
        points = f"{counts.mean():.2f}, {spread:.2f}"
    elif name != "combined":
        uniform = f"{stats.kstest(p, 'uniform').pvalue:.2f}"
    return (
        f"| {name} | {len(p)} | {uniform} | {points} | {low} ({chance:.2f}) | "
        f"{(p <= 0.05).mean():.3f} | {p.min():.1g} |"
    )


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--random", "count", default=30, help="random models where no folder is given")
@click.option("--level", type=click.Choice(["fast", "default", "thorough"]), default="default")
@click.option("--orders", default=999, help="random orders of a test, 4,999 in a comparison")
@click.option("--pattern", default="*", help="of the models' names in the folders")
@click.option("--write", is_flag=True, help="also into docs/lineage-measurements.md")
def main(
    folders: tuple[Path, ...], count: int, level: Level, orders: int, pattern: str, write: bool
) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary, all_cores():
        models = [
            opened(path)
            for folder in folders
            for path in sorted(folder.glob(pattern))
            if (path / "config.json").exists() and not path.name.endswith("-half")
        ] or random_models(Path(temporary), count)
        found = outcomes(models, level, orders)
        statistics = channels(models, level)
    text = "\n".join(
        [
            f"{len(models)} models, level {level}.",
            "",
            "| criterion | pairs | uniform (KS p) | fixed points: mean, variance | "
            "p <= 0.001 (chance) | share p <= 0.05 | smallest p |",
            "|---|---|---|---|---|---|---|",
            *(row(name, values) for name, values in found.items()),
            "",
            *channel_table(statistics),
        ]
    )
    click.echo(text)
    if write:
        fill("null", text)


if __name__ == "__main__":
    main()
