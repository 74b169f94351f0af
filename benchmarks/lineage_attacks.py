"""What hiding a copy costs its maker, and what is said of it: the table of docs/lineage.md.

    python -m benchmarks.lineage_attacks [--smollm2] [--write]

Every attack of tools/attacks.py on the zoo's seed0 (`--smollm2`: also on SmolLM2):
perplexity before and after on help topics of Python, the verdict, and the channels that show it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.common import fill_page, machine
from ckptforensics.lineage.compare import compare
from ckptforensics.results.comparison import PairRecord
from ckptforensics.runtime.model import start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.texts import Text, windows_of
from tools import attacks, launder, transforms
from tools.smollm2 import cached_hf_layout, gguf_file

ROOT = Path(__file__).resolve().parents[1]
ZOO, PAGE = ROOT / "fixtures" / "zoo", ROOT / "docs" / "lineage.md"

HIDING: dict[str, attacks.Attack] = {
    "all exact launderings": launder.everything,
    "half as many decoys": attacks.hidden(attacks.decoys),
    "neurons in 2 copies": attacks.hidden(lambda m, g: attacks.copies(m, g, 2)),
    "neurons in 8 copies": attacks.hidden(attacks.copies),
    "a planted direction in every layer": attacks.hidden(attacks.planted),
    "residual stream padded with zeros": attacks.hidden(attacks.padded),
    "residual stream padded, read by noise": attacks.hidden(
        lambda m, g: attacks.padded(m, g, noise=True)
    ),
    "2% noise": attacks.hidden(attacks.moved),
    "10% noise": attacks.hidden(lambda m, g: attacks.moved(m, g, 0.1)),
}
TAKEN: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "attention into another model": (["self_attn"], ()),
    "queries and keys into another model": (["q_proj", "k_proj"], ()),
    "FFNs into another model": (["mlp"], ()),
    "down projections into another model": (["down_proj"], ()),
    "embeddings into another model": (["embed"], ()),
    "one layer into another model": (["proj"], (1,)),
}


def made(source: Path, other: Path | None) -> Iterator[tuple[str, transforms.Model]]:
    """Name and model of each attack; parts are taken over where another model is there."""
    model = transforms.read(source)
    for name, attack in HIDING.items():
        yield name, attack(model, np.random.default_rng(1))
    if other is not None:
        for name, (parts, layers) in TAKEN.items():
            yield name, attacks.taken(model, transforms.read(other), parts, layers)


def loss(folder: Path, text: Text) -> float:
    runtime = start(folder)
    return perplexity(runtime, windows_of(runtime, text)[0])[0]


def smollm2_text() -> Text:
    """The help topics in SmolLM2's tokens: the folder of its weights has no tokenizer."""
    windows, _ = windows_of(start(gguf_file()), Text(limit=1024, window=128))
    return Text(token_ids=[token for window in windows for token in window], window=128)


def channels(pair: PairRecord) -> str:
    """The criteria that show relatives on their own, each with its value."""
    shown = [f"{test.name} {test.statistic:.2f}" for test in pair.tests_run if test.shows_relatives]
    exact = [t.log10_p for t in pair.tests_run if t.group == "exact" and t.log10_p is not None]
    if exact and min(exact) <= -6:
        shown.insert(0, "exact p")
    return ", ".join(shown) or "none"


def rows(source: Path, other: Path | None, text: Text, folder: Path) -> Iterator[str]:
    before = loss(source, text)
    for name, model in made(source, other):
        target = transforms.write(model, folder / "attack", "F32")
        pair = compare([source, target]).pairs[0]
        kind = pair.verdict if pair.relation is None else f"{pair.verdict}: {pair.relation}"
        cost = f"{before:.2f} to {loss(target, text):.2f}"
        yield f"| {name} | {cost} | {kind} | {channels(pair)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", action="store_true", help="also on SmolLM2")
    parser.add_argument("--write", action="store_true", help="also into the page")
    options = parser.parse_args()
    lines = ["| attack | what it cost (perplexity) | verdict | channels that show it |"]
    lines.append("|---|---|---|---|")

    def found(line: str) -> None:
        lines.append(line)
        click.echo(line)

    with tempfile.TemporaryDirectory() as temporary:
        for row in rows(ZOO / "seed0", ZOO / "seed1", Text(limit=4096, window=64), Path(temporary)):
            found(row)
        if options.smollm2:
            for row in rows(cached_hf_layout(), None, smollm2_text(), Path(temporary)):
                found(row.replace("| ", "| SmolLM2: ", 1))
    lines += ["", "; ".join(f"{name}: {value}" for name, value in machine()) + "."]
    if options.write:
        fill_page(PAGE, "attacks", "\n".join(lines))


if __name__ == "__main__":
    main()
