"""Every laundering with every damage, against its original.

The table of docs/lineage-measurements.md:

    python -m benchmarks.lineage_launder [--real] [--write]

Of the zoo's `seed0`, or of SmolLM2 with --real (which has no tokenizer beside it and is not
trained; damage is done to the one with every laundering alone, for it takes half a minute each).
tests/lineage/test_fixtures.py shows that a laundering alone leaves the output unchanged.
Asserts nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from benchmarks.common import machine
from benchmarks.lineage_zoo import fill, statistic
from ckptforensics.compute.threads import all_cores
from ckptforensics.lineage.compare import compare_pair, open_model
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from tools import launder, transforms
from tools.smollm2 import cached_hf_layout
from tools.zoo import ZOO

Damage = Callable[[Path, Path], Path]


def _changed(change: Callable[[transforms.Model], transforms.Model]) -> Damage:
    def damage(source: Path, folder: Path) -> Path:
        return transforms.write(change(transforms.read(source)), folder, "F32")

    return damage


DAMAGE: dict[str, Damage] = {
    "nothing": lambda source, _: source,
    "noise 1%": _changed(lambda model: launder.noise(model, 0.01)),
    "noise 5%": _changed(lambda model: launder.noise(model, 0.05)),
    "200 steps of training": lambda source, folder: launder.finetune(source, folder),
    "new embeddings": _changed(transforms.redraw_embeddings),
}


def cell(base: Model, path: Path) -> str:
    """The verdict on a laundered copy, with neuron agreement on tokens and on directions."""
    with all_cores():
        found = compare_pair(Pair(base, open_model(path)))
    values = [statistic(found, f"neuron agreement on {on}") for on in ("tokens", "directions")]
    words = ", ".join("-" if f is None else f"{f:.2f}" for f in values)
    return f"{found.verdict} ({words})"


@click.command()
@click.option("--real", is_flag=True, help="SmolLM2 in place of the zoo's seed0")
@click.option("--write", is_flag=True, help="also into docs/lineage-measurements.md")
def main(real: bool, write: bool) -> None:
    """Print the table."""
    source = cached_hf_layout() if real else ZOO / "seed0"
    damages = {n: d for n, d in DAMAGE.items() if not (real and "training" in n)}
    lines = [
        "| laundering | " + " | ".join(damages) + " |",
        "|---|" + "---|" * len(damages),
    ]
    click.echo("\n".join(lines))
    base = open_model(source)
    base.sign()
    for number, kind in enumerate(launder.EXACT):
        with tempfile.TemporaryDirectory() as temporary:
            clean = transforms.write(
                launder.EXACT[kind](transforms.read(source), np.random.default_rng(number)),
                Path(temporary) / "clean",
                "F16" if kind == "dtype" else "F32",
            )
            cells = []
            for name, damage in damages.items():
                if real and name != "nothing" and kind != "all":
                    cells.append("")
                    continue
                path = damage(clean, Path(temporary) / "damaged")
                cells.append(cell(base, path))
                if path != clean:
                    shutil.rmtree(path)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        click.echo(lines[-1])
    lines += ["", "; ".join(f"{name}: {value}" for name, value in machine()) + "."]
    if write:
        fill("launder-real" if real else "launder", "\n".join(lines))


if __name__ == "__main__":
    main()
