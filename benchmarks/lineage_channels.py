"""What every channel of a comparison sees alone, and all together: docs/lineage-measurements.md.

    python -m benchmarks.lineage_channels [--zoo] [--real] [--every N] [--write]

`--zoo`: all pairs of the zoo, relatives and independent models; how well each channel tells them
apart. `--real`: SmolLM2, Gemma 3 270M and MiniLM, each against each, with the statistic of each
channel. Both without either. No verdicts: `lineage_zoo` has these.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import click
import numpy as np

from benchmarks.common import machine
from benchmarks.lineage_zoo import fill
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.compare import open_model, seed_of
from ckptforensics.lineage.criteria import assignments, neurons, robust
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.results.comparison import RELATIVES
from tools import gemma3, minilm, smollm2
from tools.zoo import RELATIONS, zoo

CHANNELS = (*neurons.CRITERIA, *robust.CRITERIA)
_EXACT = "exact criteria by assignment, -log10 p"
_TOGETHER = "all of them, each by its limit"
_P_LIMIT = 6.0


def measured(a: Model, b: Model) -> dict[str, float | str]:
    """The statistic of every channel, or why it has none."""
    pair = Pair(a, b, seed=seed_of(a, b))
    found: dict[str, float | str] = {}
    for test in CHANNELS:
        try:
            value = test.run(pair).statistic
            found[test.name] = "not measured" if value is None else value
        except NotApplicable as problem:
            found[test.name] = problem.message
    outcomes = []
    for test in assignments.CRITERIA:
        try:
            outcomes.append(test.run(pair))
        except NotApplicable:
            continue
    p = assignments.combined(outcomes)
    if p is not None:
        found[_EXACT] = -p
    limits = {test.name: test.limits[1] for test in CHANNELS if test.limits}
    limits[_EXACT] = _P_LIMIT
    shares = [v / limits[n] for n, v in found.items() if isinstance(v, float)]
    found[_TOGETHER] = max(shares, default=0.0)
    for model in (a, b):
        model.forget()
    return found


def zoo_table(folder: Path, every: int) -> str:
    """Of each channel: pairs it was measured on, and how well it tells relatives from others."""
    models = {name: open_model(path) for name, path in zoo(folder).items()}
    told: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for expected in RELATIONS[::every]:
        related = expected.verdict in RELATIVES
        for name, value in measured(models[expected.a], models[expected.b]).items():
            if isinstance(value, float):
                told[name].append((value, related))
    lines = [
        "| channel | relatives, independent | area under the curve | found without a false one | "
        "largest of independent models |",
        "|---|---|---|---|---|",
    ]
    names = (*(test.name for test in CHANNELS), _EXACT, _TOGETHER)
    lines += [f"| {name} | {_told_apart(told[name])} |" for name in names]
    return "\n".join(lines)


def _told_apart(values: Sequence[tuple[float, bool]]) -> str:
    own, other = (np.array([x for x, is_one in values if is_one is of]) for of in (True, False))
    above = (own[:, None] > other).mean() + (own[:, None] == other).mean() / 2
    found = float((own > other.max()).mean())
    return f"{own.size}, {other.size} | {above:.4f} | {found:.1%} | {other.max():.3g}"


def real_table() -> str:
    """Every pair of unrelated real models, with what each channel says."""
    models: Mapping[str, Path] = {
        "SmolLM2": smollm2.gguf_file(),
        "Gemma 3 270M": gemma3.gguf_file(),
        "MiniLM": minilm.model_directory(),
    }
    opened = {name: open_model(path) for name, path in models.items()}
    for name, model in opened.items():
        model.name = name
    names = [*(test.name for test in CHANNELS), _EXACT]
    lines = [f"| pair | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for a, b in combinations(opened, 2):
        found = measured(opened[a], opened[b])
        cells = [found.get(name, "-") for name in names]
        words = [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in cells]
        lines.append(f"| {a}, {b} | {' | '.join(words)} |")
        click.echo(lines[-1])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", action="store_true", help="the zoo alone")
    parser.add_argument("--real", action="store_true", help="real models alone")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="only every Nth pair of the zoo"
    )
    parser.add_argument("--write", action="store_true", help="also into the page")
    options = parser.parse_args()
    both = options.zoo == options.real
    text = "; ".join(f"{name}: {value}" for name, value in machine()) + "."
    with tempfile.TemporaryDirectory() as temporary, all_cores():
        tables = {
            "channels": zoo_table(Path(temporary), options.every) if both or options.zoo else None,
            "strangers": real_table() if both or options.real else None,
        }
    for name, table in tables.items():
        if table is not None:
            click.echo(f"{table}\n\n{text}")
            if options.write:
                fill(name, f"{table}\n\n{text}")


if __name__ == "__main__":
    main()
