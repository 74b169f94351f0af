"""Train the networks of docs/training.md, and write its tables, curves and pictures.

python -m benchmarks.training run DIR          the Bigram-Backcopy task: hours of one core
python -m benchmarks.training write DIR        what became of these runs, into docs/
python -m benchmarks.training directions DIR   what `ckpt evolve` says of them, into the page
python -m benchmarks.training options DIR      language models, option by option: an hour
python -m benchmarks.training compare DIR      what became of these, into docs/training.md
python -m benchmarks.training speed            steps against a plain PyTorch loop, into the same
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import fill_page, machine, ratios, require_quiet

if TYPE_CHECKING:
    from ckptforensics.results.evolution import EvolutionDocument
    from ckptforensics.results.toy import ToyRun

DOCS = Path(__file__).parents[1] / "docs"
# Name of a run to the options of `ckpt toy train`; batches are smaller than the published 512.
_ONE = "--batch 16 --threads 2 --save-every 100"
_THREE = "--layers 3 --batch 8 --steps 1500 --threads 2 --save-every 100"
RUNS = {
    "softmax-1": "--batch 32 --steps 2500 --threads 1",
    "relu-1": f"{_ONE} --attention relu --steps 1000",
    "sgd-1": f"{_ONE} --optimizer sgd --steps 1000",
    "softmax-3": _THREE,
    "relu-3": f"{_THREE} --attention relu --rate 3e-4",
    "sgd-3": f"{_THREE} --optimizer sgd",
    "narrow-3": f"{_THREE} --width 192 --dtype BF16",
}
# Three layers at ten times the published rate: what comes late comes within an hour.
_FAST = "--layers 3 --batch 8 --width 192 --rate 3e-3 --threads 1 --dtype BF16"
RUNS["fast-3"] = f"{_FAST} --steps 3000"
RUNS["fast-3-seed-1"] = f"{_FAST} --steps 1500 --seed 1"
# A fine-tune of `fast-3`: other sequences, at the published rate.
RUNS["fast-3-tuned"] = f"{_FAST} --rate 3e-4 --steps 300 --seed 7 --from DIR/fast-3/checkpoint-3000"
# Measured points of a run that are kept in docs/training.json, at most.
_KEPT = 25

# What the publications discuss to the options of `ckpt toy train --task language`.
OPTIONS = {
    "plain": "",
    "bidirectional mask": "--mask bidirectional",
    "sliding window": "--attention-window 32",
    "parallel branches": "--residual parallel",
    "learned positions": "--positions learned",
    "ALiBi": "--positions alibi",
    "no positions": "--positions none",
    "SGD": "--optimizer sgd",
    "ReLU attention": "--attention relu",
    "learned sinks": "--sinks",
    "gated attention": "--gated",
    "QK-norm": "--qk-norm",
}
SEEDS = (0, 1)
_LANGUAGE = "--task language --steps 800 --threads 1 --save-every 10000"
# Loss in nats on held-out text at which the language models are compared.
MATCHED = 3.8


def run(folder: Path, runs: dict[str, str] = RUNS) -> None:
    """Train what is not trained yet."""
    from ckptforensics.cli.main import main as ckpt

    for name, options in runs.items():
        words = [word.replace("DIR", str(folder)) for word in options.split()]
        words = ["toy", "train", "-o", str(folder / name), *words, "-q"]
        code = ckpt([*words, "--format", "json"])
        if code:
            sys.exit(code)


def write(folder: Path) -> None:
    """Fill docs/training.md, and write docs/training.json and the pictures.

    Runs that the folder lacks stay as they are in docs/training.json.
    """
    from ckptforensics.render import plot_document
    from ckptforensics.results import load_document
    from ckptforensics.results.toy import ToyDocument
    from ckptforensics.runtime.toy.report import report

    whole = report([folder / name for name in RUNS if (folder / name / "log.jsonl").exists()])
    before = load_document(DOCS / "training.json")
    assert isinstance(before, ToyDocument)
    runs = {one.path: one for one in before.runs}
    for one in whole.runs:
        last, step = len(one.curve) - 1, -(-len(one.curve) // _KEPT)
        curve = tuple(p for i, p in enumerate(one.curve) if i % step == 0 or i == last)
        name = Path(one.path).name
        runs[name] = one.model_copy(update={"path": name, "curve": curve})
    ordered = tuple(runs[name] for name in RUNS if name in runs)
    document = ToyDocument(**{**whole.model_dump(), "runs": ordered})
    # On one line: indented it is three times as large.
    (DOCS / "training.json").write_text(document.model_dump_json() + "\n", encoding="utf-8")
    published = [one for one in ordered if not one.path.startswith("fast")]
    for name, layers in (("training-1-layer", 1), ("training-3-layers", 3)):
        chosen = tuple(one for one in published if one.layers == layers)
        picture = ToyDocument(**{**document.model_dump(), "runs": chosen})
        plot_document(picture, DOCS / f"{name}.png")
    fill_page(DOCS / "training.md", "runs", _table(ordered))


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
    versions = ", ".join(sorted({one.torch for one in runs}))
    threads = " or ".join(str(n) for n in sorted({one.threads for one in runs}))
    lines += ["", f"Threads: {threads}, of a machine with two cores; torch {versions}."]
    return "\n".join(lines)


def directions(folder: Path) -> None:
    """Fill docs/training.md with when the direction of `fast-3` came, and who shares it."""
    from ckptforensics.runtime.toy.saved import read

    def last(name: str) -> Path:
        return list(read(folder / name).checkpoints().values())[-1]

    found = _evolved(list(read(folder / "fast-3").checkpoints().values()))
    peak = found.norm_peak
    lines = [
        "| layer | s1/s2 at the first and last step | u1 appears | settles | label |",
        "|---|---|---|---|---|",
    ]
    for layer in found.layers:
        gaps = f"{layer.checkpoints[0].gap:.2f}, {layer.checkpoints[-1].gap:.2f}"
        since = "" if layer.labelled is None else f", from step {layer.labelled:,}"
        label = f"{layer.label}{since}" if layer.label else "none"
        steps = [f"step {s:,}" if s is not None else "no" for s in (layer.appears, layer.settles)]
        lines.append(f"| {layer.layer} | {gaps} | {steps[0]} | {steps[1]} | {label} |")
    norms = [
        f"{what} {one.norm:.0f} at step {one.step:,}"
        for what, one in (("`<s>`", peak.initial), ("other tokens' median", peak.typical))
        if one is not None
    ]
    lines += ["", f"Largest norms of single tokens: {'; '.join(norms)}."]
    if found.label_comes is not None:
        lines[-1] += f" The label comes {found.label_comes} the peak of the others' norms."
    lines += ["", "| angle of u1 to the last checkpoint of `fast-3` | layer 1 | 2 | 3 |"]
    lines.append("|---|---|---|---|")
    for name, what in (
        ("fast-3-tuned", "300 more steps on other sequences, at the published rate"),
        ("fast-3-seed-1", "another seed"),
    ):
        pair = _evolved([last("fast-3"), last(name)])
        angles = [layer.checkpoints[-1].u_previous for layer in pair.layers]
        cells = ["-" if a is None else f"{a.degrees:.1f}" + "*" * (not a.clear) for a in angles]
        lines.append(f"| {what} (`{name}`) | {' | '.join(cells)} |")
    lines += ["", "Degrees; `*`: s1 hardly stands out in one of the two."]
    fill_page(DOCS / "training.md", "directions", "\n".join(lines))


def _evolved(checkpoints: list[Path]) -> EvolutionDocument:
    from ckptforensics.lineage.compare import open_model
    from ckptforensics.lineage.evolve import evolve, signatures

    models = [open_model(path) for path in checkpoints]
    return evolve([str(path) for path in checkpoints], signatures(models))


def options(folder: Path) -> None:
    """Train the language models, each option with each seed."""
    runs = {}
    for seed in SEEDS:
        for name, words in OPTIONS.items():
            runs[f"{name.replace(' ', '-')}-{seed}"] = f"{_LANGUAGE} --seed {seed} {words}"
    run(folder, runs)


def compare(folder: Path) -> None:
    """Fill docs/training.md with what the language models show at one loss."""
    from ckptforensics.runtime.toy.saved import read

    lines = [
        "| option | seed | step | loss | norm of `<s>` over the others' | highest norm over the "
        "median | attention to `<s>` | heads with a sink | at the last step: loss, norm of `<s>` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in OPTIONS:
        for seed in SEEDS:
            log = read(folder / f"{name.replace(' ', '-')}-{seed}").log
            # Another question has another loss: an encoder guesses hidden tokens.
            comparable = name != "bidirectional mask"
            matched = [p for p in log if comparable and p["loss"] <= MATCHED]
            point, last = (matched or log)[0 if matched else -1], log[-1]
            step = f"{point['step']:,}" + ("" if matched else " (last)")
            cells = [name, seed, step, f"{point['loss']:.2f}", f"{_stands_out(point):.2f}"]
            cells += [f"{max(point['highest'][1:]):.2f}", f"{max(point['attention']):.2f}"]
            cells += [f"{point['sinks']:.0%}", f"{last['loss']:.2f}, {_stands_out(last):.2f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    fill_page(DOCS / "training.md", "options", "\n".join(lines))


def _stands_out(point: dict[str, Any]) -> float:
    """Norm of the first token over the median of the others, in the layer where it is largest."""
    pairs = zip(point["residual_norm"][1:], point["others_norm"][1:], strict=True)
    return float(max(own / others for own, others in pairs))


def speed() -> None:
    """Fill docs/training.md with steps of the trainer against a plain PyTorch loop, in turns."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    require_quiet()
    batch, rounds = 32, 7
    steps: dict[str, Callable[[], None]] = {
        "`ckpt toy train`": _trainer(batch),
        "plain PyTorch loop": _plain(batch),
    }
    if shutil.which("g++"):
        steps["`ckpt toy train --compile`"] = _trainer(batch, compiled=True)
        steps["plain PyTorch loop, compiled"] = _plain(batch, compiled=True)
    for step in steps.values():
        step()
        step()
    with FlopCounterMode(display=False) as counter:
        steps["plain PyTorch loop"]()
    work = counter.get_total_flops()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    matrix = torch.randn(2048, 2048)
    for _ in range(rounds):
        peaks.append(2 * 2048**3 / _timed(lambda: matrix @ matrix))
        for name, step in steps.items():
            seconds[name].append(_timed(step))
    lines = [
        "| loop | seconds a step | tokens a second | of the matrix peak | its time over the plain "
        "loop's |",
        "|---|---|---|---|---|",
    ]
    for name, found in seconds.items():
        median = statistics.median(found)
        share = work / median / statistics.median(peaks)
        ratio = ratios(found, seconds["plain PyTorch loop"])
        lines.append(
            f"| {name} | {median:.3f} ({min(found):.3f} to {max(found):.3f}) "
            f"| {batch * 256 / median:,.0f} | {share:.0%} | {ratio} |"
        )
    peak = statistics.median(peaks) / 1e9
    about = "; ".join(value for name, value in machine() if name != "load average")
    lines += [
        "",
        f"One layer, batch {batch}, {rounds} rounds in turns, median and range; matrix peak: "
        f"{peak:.0f} GFLOP/s in float32, a product of width 2048. {about}.",
    ]
    fill_page(DOCS / "training.md", "speed", "\n".join(lines))


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _trainer(batch: int, *, compiled: bool = False) -> Callable[[], None]:
    """A step of `ckpt toy train`, its sequences included."""
    import torch

    from ckptforensics.runtime.toy.measures import BigramTask
    from ckptforensics.runtime.toy.network import Shape, new_tensors
    from ckptforensics.runtime.toy.recipes import Recipe
    from ckptforensics.runtime.toy.statistics import statistics as counts
    from ckptforensics.runtime.toy.training import Stepper

    task = BigramTask(counts())
    shape, recipe = Shape(task.vocabulary), Recipe(batch=batch)
    tensors = new_tensors(shape, 0)
    stepper = Stepper(task, shape, recipe, tensors, compiled=compiled)
    torch.use_deterministic_algorithms(True)
    numbers = iter(range(10**9))
    return lambda: stepper.step(next(numbers))


def _plain(batch: int, *, compiled: bool = False) -> Callable[[], None]:
    """A step of the same network as PyTorch's modules, on sequences that are drawn beforehand."""
    import numpy as np
    import torch
    from torch import nn

    from ckptforensics.runtime.toy.bigram import BigramBackcopy
    from ckptforensics.runtime.toy.statistics import statistics as counts

    text = counts()
    drawn = BigramBackcopy(text).draw(batch, np.random.default_rng(0))
    ids = torch.from_numpy(drawn)
    vocabulary, width, length = len(text.symbols), 256, drawn.shape[1] - 1

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(length, width)
            self.first, self.second, self.last = (nn.LayerNorm(width) for _ in range(3))
            self.query, self.key, self.value, self.output = (
                nn.Linear(width, width, bias=False) for _ in range(4)
            )
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, ids: torch.Tensor) -> Any:
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            n = self.first(x)
            query, key, value = (part(n)[:, None] for part in (self.query, self.key, self.value))
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.output(mixed[:, 0])
            x = x + self.down(torch.relu(self.up(self.second(x))))
            return self.head(self.last(x))

    model = Plain()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, (0.9, 0.99), weight_decay=1e-4)

    def step() -> None:
        logits = forward(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


_WORK = {
    "run": run,
    "write": write,
    "directions": directions,
    "options": options,
    "compare": compare,
}


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*_WORK, "speed"])
    parser.add_argument("folder", type=Path, metavar="DIR", nargs="?")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed()
        return
    if arguments.folder is None:
        parser.error("name the folder of the runs")
    _WORK[arguments.what](arguments.folder)


if __name__ == "__main__":
    main()
