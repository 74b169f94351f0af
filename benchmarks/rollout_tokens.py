"""How many single tokens labels and directions need, measured on models at hand.

python -m benchmarks.rollout_tokens [--families] [--write]

Each model's weights are measured once, with 512 tokens; labels and the shared direction are then
taken from random draws of fewer, 200 of each size, and compared with those of all. Only what the
probed direction itself does to the response is that of the 512 tokens; its angle is in the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common import fill_page
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import CkptError
from ckptforensics.findings import measure as measuring
from ckptforensics.findings.labels import label
from ckptforensics.findings.summary import shared_direction
from ckptforensics.linear import Fit

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
COUNTS = (8, 12, 16, 24, 32, 64)
POPULATION = 512
DRAWS = 200


@dataclass
class Found:
    """Of one model and one number of tokens: shares of draws, and the worst of them."""

    labels: float
    source: float
    degrees: float
    norm: float


def of_model(path: Path) -> dict[int, Found]:
    """Compare draws of tokens with all of them."""
    states = []
    plain = measuring.token_state

    def keep(x: np.ndarray) -> measuring.TokenState:
        states.append(np.asarray(x, np.float64).copy())
        return plain(x)

    with (
        mock.patch.object(measuring, "ROLLOUT_TOKENS", POPULATION),
        mock.patch.object(measuring, "token_state", keep),
    ):
        measured = measuring.measure(open_checkpoint(path), Fit(), eigenpairs=None)
    if measured.tokens is None or len(states) != len(measured.layers) + 1:
        raise CkptError("not every layer has tokens")
    begin = open_checkpoint(path).architecture.bos_token_id
    others = [i for i, token in enumerate(measured.tokens) if token != begin]
    first = [i for i, token in enumerate(measured.tokens) if token == begin]
    whole = _taken(measured, states, list(range(len(measured.tokens))))
    wanted, direction, norms = _said(whole)
    generator = np.random.default_rng(0)
    found = {}
    for count in COUNTS:
        if count > len(others):
            continue
        wrong = moved = 0
        degrees, off = [0.0], [0.0]
        for _ in range(DRAWS):
            chosen = generator.choice(others, count, replace=False)
            labels, other, drawn = _said(_taken(measured, states, [*first, *sorted(chosen)]))
            wrong += labels != wanted
            moved += other[0] != direction[0]
            if direction[0] == other[0] == "rollout":
                cosine = min(1.0, abs(float(other[1] @ direction[1])))
                degrees.append(float(np.degrees(np.arccos(cosine))))
            off.append(float(np.max(np.abs(np.log(drawn / norms)))))
        found[count] = Found(
            wrong / DRAWS, moved / DRAWS, max(degrees), float(np.quantile(off, 0.99))
        )
    return found


def _taken(
    measured: measuring.Measurements, states: list[np.ndarray], rows: list[int]
) -> measuring.Measurements:
    """The measurements with the tokens of these rows."""
    taken = [measuring.token_state(x[rows]) for x in states]
    layers, lowest = [], taken[0].median
    for i, one in enumerate(measured.layers):
        lowest = min(lowest, taken[i].median)
        layers.append(replace(one, before=taken[i], after=taken[i + 1], lowest=lowest))
    return replace(measured, layers=tuple(layers))


def _said(
    measured: measuring.Measurements,
) -> tuple[list[Any], tuple[str, Any], Any]:
    """Labels; where the direction is from, and which one; median norms."""
    labels = [label(one).name for one in measured.layers]
    found = shared_direction(measured)
    unit = np.zeros(1)
    if found.source == "rollout":
        after = next(one.after for one in measured.layers if one.layer == found.layer)
        assert after is not None
        unit = after.direction
    norms = np.array([one.after.median for one in measured.layers if one.after is not None])
    return labels, (found.source, unit), np.maximum(norms, 1e-30)


def models(*, families: bool) -> Iterator[tuple[str, Path]]:
    """Groups and paths of the models."""
    from tools import gemma3, minilm, smollm2

    for make in (smollm2.gguf_file, gemma3.gguf_file, minilm.model_directory):
        yield "real", make()
    for path in sorted((ROOT / "fixtures" / "zoo").iterdir()):
        if path.is_dir():
            yield "zoo", path
    yield "planted", ROOT / "fixtures" / "planted"
    yield "trained here", ROOT / "fixtures" / "toy" / "checkpoint-1500"
    if families:
        from tests.families.test_families import CASES
        from tests.support.families.harness import build_model, save_model

        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                save_model(build_model(case), Path(folder), case)
                yield "families", Path(folder)


def main() -> None:
    """Measure all, print each model, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    groups: dict[str, list[dict[int, Found]]] = {}
    for group, path in models(families=arguments.families):
        try:
            found = of_model(path)
        except CkptError as problem:
            sys.stderr.write(f"{group} {path.name}: {problem}\n")
            continue
        groups.setdefault(group, []).append(found)
        words = [f"{n}: {f.labels:.1%} {f.source:.1%} {f.degrees:.2f}" for n, f in found.items()]
        sys.stderr.write(f"{group} {path.name} {' | '.join(words)}\n")
    lines = [
        "| models | tokens | draws with another label anywhere, mean and worst model "
        "| with another source of the direction, worst | angle to the direction of all, largest "
        "| median norms, off by, 99 % |",
        "|---|---|---|---|---|---|",
    ]
    for group, rows in groups.items():
        for count in COUNTS:
            known = [row[count] for row in rows if count in row]
            if not known:
                continue
            labels = [one.labels for one in known]
            lines.append(
                f"| {group} ({len(known)}) | {count} | {np.mean(labels):.1%}, {max(labels):.1%} "
                f"| {max(one.source for one in known):.1%} "
                f"| {max(one.degrees for one in known):.2f} "
                f"| {np.expm1(max(one.norm for one in known)):.0%} |"
            )
    if arguments.families:
        lines += [
            "",
            "The families are tiny random models with vocabularies below 64, so that there are no "
            "more tokens to draw.",
        ]
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if arguments.write:
        fill_page(PAGE, "tokens", text)


if __name__ == "__main__":
    main()
