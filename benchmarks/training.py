"""Train the networks of docs/training.md, and write its table, curves and pictures.

python -m benchmarks.training run DIR      train all: about 70 minutes of two cores
python -m benchmarks.training write DIR    what became of them, into docs/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import fill_page

if TYPE_CHECKING:
    from ckptforensics.results.toy import ToyRun

DOCS = Path(__file__).parents[1] / "docs"
# Name of a run to the options of `ckpt toy train`; batches are smaller than the published 512.
_ONE = ["--batch", "16", "--threads", "2", "--save-every", "100"]
_THREE = [
    "--layers",
    "3",
    "--batch",
    "8",
    "--steps",
    "1500",
    "--threads",
    "2",
    "--save-every",
    "100",
]
_SGD, _RELU = ["--optimizer", "sgd"], ["--attention", "relu"]
RUNS = {
    "softmax-1": [*_ONE, "--steps", "1800"],
    "relu-1": [*_ONE, *_RELU, "--steps", "1000"],
    "sgd-1": [*_ONE, *_SGD, "--steps", "1000"],
    "softmax-3": _THREE,
    "relu-3": [*_THREE, *_RELU, "--rate", "3e-4"],
    "sgd-3": [*_THREE, *_SGD],
    "narrow-3": [*_THREE, "--width", "192", "--dtype", "BF16"],
}
# A measured step in so many is kept in docs/training.json.
_KEPT = 5


def run(folder: Path) -> None:
    """Train what is not trained yet."""
    from ckptforensics.cli.main import main as ckpt

    for name, options in RUNS.items():
        code = ckpt(["toy", "train", "-o", str(folder / name), *options, "--format", "json"])
        if code:
            sys.exit(code)


def write(folder: Path) -> None:
    """Fill docs/training.md, and write docs/training.json and the pictures."""
    from ckptforensics.render import plot_document
    from ckptforensics.results import save_document
    from ckptforensics.results.toy import ToyDocument
    from ckptforensics.runtime.toy.report import report

    whole = report([folder / name for name in RUNS if (folder / name / "log.jsonl").exists()])

    def short(run: ToyRun) -> ToyRun:
        last = len(run.curve) - 1
        curve = tuple(p for i, p in enumerate(run.curve) if i % _KEPT == 0 or i == last)
        return run.model_copy(update={"path": Path(run.path).name, "curve": curve})

    runs = tuple(short(one) for one in whole.runs)
    document = ToyDocument(**{**whole.model_dump(), "runs": runs})
    save_document(document, DOCS / "training.json")
    for name, chosen in (
        ("training-1-layer", [r for r in runs if r.layers == 1]),
        ("training-3-layers", [r for r in runs if r.layers == 3]),
    ):
        picture = ToyDocument(**{**document.model_dump(), "runs": tuple(chosen)})
        plot_document(picture, DOCS / f"{name}.png")
    fill_page(DOCS / "training.md", "runs", _table(runs))


def _table(runs: tuple[ToyRun, ...]) -> str:
    lines = [
        "| run | layers | width | attention | optimizer | batch | step | behind triggers "
        "| elsewhere | attention to `<s>` | value norm of `<s>`, largest and last "
        "| norm of `<s>`, first and last | others |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in runs:
        first, last = one.curve[0], one.curve[-1]
        layer = max(range(one.layers), key=lambda i: last.attention[i])
        highest = max(point.value_norm[layer] for point in one.curve)
        end = one.layers - 1
        cells = [
            one.path,
            one.layers,
            one.width,
            one.attention,
            one.optimizer,
            one.batch,
            f"{last.step:,}",
            f"{last.excess_trigger:.3f}",
            f"{last.excess_other:.3f}",
            f"{last.attention[layer]:.2f} (layer {layer + 1})",
            f"{highest:.1f}, {last.value_norm[layer]:.1f}",
            f"{first.residual_norm[end]:.1f}, {last.residual_norm[end]:.1f}",
            f"{last.others_norm[end]:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    one = runs[0]
    lines += ["", f"Two threads of a machine with two cores, torch {one.torch}."]
    return "\n".join(lines)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "write"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    (run if arguments.what == "run" else write)(arguments.folder)


if __name__ == "__main__":
    main()
