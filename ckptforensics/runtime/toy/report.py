"""What runs show: logs, published numbers, ablations, and which heads do something where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ckptforensics.errors import CkptError, FormatError
from ckptforensics.progress import Progress, running
from ckptforensics.results.records import Skipped
from ckptforensics.results.toy import (
    ToyAblation,
    ToyDocument,
    ToyHead,
    ToyHeadDomain,
    ToyPoint,
    ToyPublished,
    ToyRun,
    ToySample,
)
from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy.bigram import Sequences
from ckptforensics.runtime.toy.measures import BigramTask, measured, token_losses
from ckptforensics.runtime.toy.network import Shape, run
from ckptforensics.runtime.toy.recipes import usual_rate
from ckptforensics.runtime.toy.saved import LOG, Saved, load, read
from ckptforensics.runtime.toy.statistics import statistics
from ckptforensics.version import __version__

# A head is active where the loss rises by more than this without it, in nats.
NEEDED = 0.05
_SAMPLE = 24
# How far from a published step a measured one may be, as a share of it.
_NEAR = 0.05


def report(
    folders: Sequence[Path], progress: Progress | None = None, *, text: Path | None = None
) -> ToyDocument:
    """Read runs, and measure their last checkpoints.

    Runs of the Bigram-Backcopy task are measured on sequences that no step drew; a run on another
    text than the shipped one needs that text, and is reported without.

    Parameters
    ----------
    text : of the runs that are not on the shipped one

    Raises
    ------
    UsageError
        if a folder holds no run.
    FormatError
        if its files are damaged.
    """
    runs, skipped = [], []
    tasks = [BigramTask(statistics(path)) for path in ((None,) if text is None else (None, text))]
    with running(progress, "runs", len(folders)) as tell:
        for folder in folders:
            saved = read(folder)
            found, why = _run(saved, tasks)
            runs.append(found)
            if why is not None:
                skipped.append(Skipped(what=f"ablations and heads of {folder}", reason=why))
            tell(folder.name)
    return ToyDocument(
        tool_version=__version__, runs=tuple(runs), needed_nats=NEEDED, skipped=tuple(skipped)
    )


def _run(saved: Saved, tasks: Sequence[BigramTask]) -> tuple[ToyRun, str | None]:
    shape, recipe = saved.shape, saved.recipe
    try:
        curve = tuple(ToyPoint.model_validate(line) for line in saved.log)
        for number, point in enumerate(curve, 1):
            measured_layers = {
                len(values) for values in (point.attention, point.value_norm, point.residual_norm)
            }
            if measured_layers != {shape.layers} or len(point.others_norm) != shape.layers:
                raise FormatError(
                    f"line {number} of the log has not one value for each layer",
                    path=saved.folder / LOG,
                )
        common: dict[str, Any] = {
            "path": str(saved.folder),
            "task": saved.task,
            "text": saved.text,
            "start": saved.start,
            "layers": shape.layers,
            "width": shape.width,
            "parameters": sum(int(np.prod(size)) for size in shape.sizes().values()),
            "options": options_of(saved.task, shape),
            "attention": shape.attention,
            "optimizer": recipe.optimizer,
            "rate": recipe.rate,
            "batch": recipe.batch,
            "seed": recipe.seed,
            "threads": saved.threads,
            "torch": saved.versions.get("torch", ""),
            "checkpoints": len(saved.checkpoints()),
            "curve": curve,
        }
        if saved.task != "bigram-backcopy":
            return ToyRun(**common), None
        common["published"] = _published(saved, curve, tasks[0].digest)
        try:
            extra = _measured(saved, tasks)
        except CkptError as problem:
            return ToyRun(**common), problem.message
        return ToyRun(**common, **extra), None
    except ValidationError as problem:
        where = ".".join(str(part) for part in problem.errors()[0]["loc"])
        raise FormatError(
            f"the run's log or settings are not those of a run: {where}", path=saved.folder / LOG
        ) from None


def options_of(task: str, shape: Shape) -> tuple[str, ...]:
    """In what a network differs from the task's own, as the command's options say it."""
    usual = plain_shape(task, shape.vocabulary)
    sizes = ("vocabulary", "layers", "attention")
    found = []
    for one in fields(Shape):
        value = getattr(shape, one.name)
        if one.name not in sizes and value != getattr(usual, one.name):
            name = one.name.replace("_", "-")
            found.append(name if value is True else f"{name} {value}")
    return tuple(found)


def plain_shape(task: str, vocabulary: int) -> Shape:
    """The network of a task without options."""
    if task == "bigram-backcopy":
        return Shape(vocabulary)
    return Shape(
        vocabulary,
        layers=4,
        width=96,
        heads=4,
        context=128,
        norm="rms",
        ffn="swiglu",
        positions="rope",
    )


def _published(saved: Saved, curve: tuple[ToyPoint, ...], shipped: str) -> tuple[ToyPublished, ...]:
    """Published numbers of such a run, each beside the nearest step that was measured.

    Parameters
    ----------
    shipped : digest of what is drawn from the shipped text
    """
    file = resources.files("ckptforensics.runtime.toy") / "published.json"
    shape, recipe = saved.shape, saved.recipe
    found = []
    others = [*options_of(saved.task, shape)]
    if recipe.rate != usual_rate(saved.task, shape, recipe.optimizer):
        others.append(f"rate {recipe.rate:g}")
    if saved.start is not None:
        others.append("begun from a checkpoint")
    if saved.sha256 != shipped:
        others.append("another text")
    differs = ", ".join(others) or None
    for row in json.loads(file.read_text("utf-8"))["rows"]:
        same = (row["layers"], row["attention"], row["optimizer"]) == (
            *(shape.layers, shape.attention),
            recipe.optimizer,
        )
        near = min(curve, key=lambda point: abs(point.step - row["step"]), default=None)
        if not same or near is None or abs(near.step - row["step"]) > _NEAR * row["step"]:
            continue
        values = {
            "value_norm": near.value_norm,
            "attention_to_first": near.attention,
            "logit_gap": near.logit_gap,
            "residual_norm": near.residual_norm,
        }
        for measure, measured_values in values.items():
            if measure in row and measured_values:
                # The publication's residual norms are those after the first layer.
                found.append(
                    ToyPublished(
                        step=row["step"],
                        measure=measure,
                        published=row[measure],
                        measured=measured_values[0],
                        measured_step=near.step,
                        comparable=differs,
                    )
                )
    return tuple(found)


def _measured(saved: Saved, tasks: Sequence[BigramTask]) -> dict[str, Any]:
    """Ablations, heads and a sample of the last checkpoint."""
    task = next((one for one in tasks if one.digest == saved.sha256), None)
    if task is None:
        raise CkptError(f"they need its text, {saved.text}: give --text-file")
    if task.vocabulary != saved.shape.vocabulary:
        raise FormatError("the settings name another vocabulary", path=saved.folder)
    tensors = load(saved)
    sequences = task.held_out(saved.shape, saved.recipe.seed)
    return {
        "ablations": tuple(_ablations(saved.shape, tensors, sequences)),
        "heads": tuple(_heads(saved.shape, tensors, sequences)),
        "sample": _sample(task, saved.shape, tensors, sequences),
    }


def _ablations(shape: Shape, tensors: Mapping[str, Any], sequences: Sequences) -> list[ToyAblation]:
    every = range(shape.layers)
    cases: list[tuple[str, int | None, set[tuple[int, str]]]] = [
        ("nothing", None, set()),
        ("attention", None, {(i, "attention") for i in every}),
        ("ffn", None, {(i, "ffn") for i in every}),
    ]
    if shape.layers > 1:
        for i in every:
            cases += [
                ("attention", i + 1, {(i, "attention")}),
                ("ffn", i + 1, {(i, "ffn")}),
                ("layer", i + 1, {(i, "attention"), (i, "ffn")}),
            ]
    else:
        cases.append(("layer", 1, {(0, "attention"), (0, "ffn")}))
    rows = []
    for without, layer, branches in cases:
        one = asdict(measured(shape, tensors, sequences, frozenset(branches)))
        kept = ("loss", "excess_trigger", "excess_other", "residual_norm")
        rows.append(ToyAblation(without=without, layer=layer, **{k: one[k] for k in kept}))
    return rows


def _heads(shape: Shape, tensors: Mapping[str, Any], sequences: Sequences) -> list[ToyHead]:
    weights = _weights(shape, tensors, sequences.ids[:, :-1])
    plain = token_losses(shape, tensors, sequences)
    # Queries that have a token before them which is not the first.
    asked = np.zeros_like(sequences.triggers)
    asked[:, 2:] = True
    domains = {
        "trigger": sequences.triggers & asked,
        "other": ~sequences.triggers & asked,
    }
    found = []
    for layer in range(shape.layers):
        for head in range(shape.heads):
            attention = weights[layer][:, head]
            before = np.zeros(attention.shape[:2])
            before[:, 1:] = np.diagonal(attention, offset=-1, axis1=1, axis2=2)
            gone = frozenset({(layer, f"head {head}")})
            rise = token_losses(shape, tensors, sequences, without=gone) - plain
            by_domain = {}
            for name, mask in domains.items():
                needed = float(rise[mask].mean())
                by_domain[name] = ToyHeadDomain(
                    attention=float(attention[..., 0][mask].mean()),
                    copied=float(before[mask].mean()),
                    needed=needed,
                    state="active" if needed > NEEDED else "dormant",
                )
            found.append(ToyHead(layer=layer + 1, head=head + 1, **by_domain))
    return found


def _sample(
    task: BigramTask, shape: Shape, tensors: Mapping[str, Any], sequences: Sequences
) -> ToySample:
    length = min(_SAMPLE, shape.context)
    ids = sequences.ids[:1, :length]
    weights = _weights(shape, tensors, ids)
    rounded = [
        tuple(
            tuple(tuple(round(float(w), 3) for w in query) for query in head) for head in layer[0]
        )
        for layer in weights
    ]
    return ToySample(
        symbols=tuple(task.statistics.symbols[i] for i in ids[0]),
        triggers=tuple(bool(t) for t in sequences.triggers[0, :length]),
        attention=tuple(rounded),
    )


def _weights(shape: Shape, tensors: Mapping[str, Any], ids: np.ndarray) -> list[np.ndarray]:
    """Attention of every layer, (B, heads, T, T)."""
    torch = libraries.torch()
    found: list[np.ndarray] = []

    def watch(_layer: int, what: str, tensor: Any) -> None:
        if what == "weights":
            found.append(tensor.numpy())

    with torch.no_grad():
        run(shape, tensors, torch.from_numpy(ids.copy()), watch=watch)
    return found
