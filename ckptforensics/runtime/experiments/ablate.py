"""Take one thing away and look at norms, perplexity and text; each beside a control (Fig. 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable, UsageError
from ckptforensics.findings import Scope, find_layers
from ckptforensics.findings.model import model_record
from ckptforensics.findings.sign import sign
from ckptforensics.layers import load_block
from ckptforensics.progress import Progress, running
from ckptforensics.results import LayersDocument, Skipped
from ckptforensics.results.ablation import Ablated, AblationDocument, AblationRow
from ckptforensics.runtime import libraries
from ckptforensics.runtime.experiments.empirical import MASSIVE_RATIO, MASSIVE_SIZE
from ckptforensics.runtime.experiments.populations import populations
from ckptforensics.runtime.interventions import (
    setting_coordinates,
    without_blocks,
    without_direction,
    without_ffn,
    without_weight,
)
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.perplexity import perplexity
from ckptforensics.runtime.records import running_record
from ckptforensics.runtime.texts import SENTENCE, Text, as_text, windows_of
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__

ABLATIONS: tuple[Ablated, ...] = (
    "trigger",
    "massive-zero",
    "massive-mean",
    "super-weight",
    "skip-ffn",
    "skip-block",
)
_NEW_TOKENS = 24


@dataclass(frozen=True)
class _Change:
    """One row to measure: what it is, and how the model is changed meanwhile."""

    what: Ablated
    layers: tuple[int, ...]
    detail: str
    changed: Callable[[], AbstractContextManager[None]]
    of: Ablated | None = None


@dataclass(frozen=True)
class _Found:
    """What is taken away: the labels, the high norm, and the windows that show it."""

    runtime: Runtime
    labels: LayersDocument
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    windows: list[list[int]]
    generator: np.random.Generator

    @property
    def peak(self) -> int:
        """The explosion layer whose FFN answers its trigger most."""
        rows = {row.layer: row.trigger_norm for row in self.labels.layers}
        return max(self.explosion, key=lambda layer: rows[layer])

    @cached_property
    def high(self) -> tuple[Doubles, float]:
        """States of the windows' first tokens after that layer, and the norm that is high there.

        (windows, hidden_size), and what separates both populations of norms; NothingAnalysable
        where there is one.
        """
        states: list[Any] = []
        norms: list[Any] = []

        def on_state(layer: int, state: Any) -> None:
            if layer == self.peak:
                states.append(state[:, 0].double().cpu().numpy())
                norms.append(state.float().norm(dim=-1).double().cpu().numpy().ravel())

        with self.runtime.watching(on_state):
            for window in self.windows:
                self.runtime.forward([window])
        (population,) = populations(np.concatenate(norms)[None])
        if population.threshold is None:
            raise NothingAnalysable(
                f"no token of this text has a high norm after layer {self.peak}"
            )
        return np.concatenate(states), population.threshold


def ablate(
    model: Runtime | Checkpoint | str | Path,
    *,
    what: Sequence[Ablated] = ABLATIONS,
    layers: Sequence[int] | None = None,
    text: Text | str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> AblationDocument:
    """Measure the model as it is, with each thing taken away, and with the control of that.

    Parameters
    ----------
    model : a running model, an opened checkpoint or what `open_checkpoint` takes
    what : of `ABLATIONS`
    layers : layers in place of those that are labelled explosion (trigger, massive, super weight)
        or decay (skipped)
    text : by default Python's help topics
    prompt : what the model continues, by default the sentence of the paper's figures
    seed : of the controls
    placement : device and element type, unless the model runs already
    progress : told of each row

    Raises
    ------
    UsageError
        if a layer or a name is not one.
    NothingAnalysable
        if the model predicts no tokens.
    CkptError
        as `open_checkpoint`, `runtime.model.start` and `runtime.texts.windows_of`.
    """
    runtime = start(model, placement)
    checkpoint = runtime.checkpoint
    for name in what:
        if name not in ABLATIONS:
            raise UsageError(
                f"nothing is called '{name}'", hint=f"there is: {', '.join(ABLATIONS)}"
            )
    count = len(runtime.blocks)
    if layers is not None and not all(1 <= layer <= count for layer in layers):
        raise UsageError(f"the model has layers 1 to {count}", hint="change --layers")
    windows, record = windows_of(runtime, as_text(text))
    labels = find_layers(checkpoint, progress=progress)
    found = _Found(
        runtime,
        labels,
        tuple(layers) if layers is not None else labels.explosion,
        tuple(layers) if layers is not None else labels.decay,
        windows,
        np.random.default_rng(seed),
    )
    changes = [_Change("none", (), "the model as it is", nullcontext)]
    skipped = []
    for name in what:
        try:
            changes += _PLANS[name](found, name)
        except CkptError as problem:
            skipped.append(Skipped(what=name, reason=problem.message))
    prompt_ids = _prompt(runtime, prompt)
    rows = []
    with running(progress, "rows", len(changes)) as step:
        for change in changes:
            try:
                rows.append(_row(runtime, change, windows, prompt_ids))
            except NothingAnalysable as problem:
                if change.what == "none":
                    raise
                skipped.append(Skipped(what=change.detail, reason=problem.message))
            step(change.detail)
    return AblationDocument(
        tool_version=__version__,
        model=model_record(checkpoint),
        running=running_record(runtime),
        text=record,
        prompt=None if prompt_ids is None else (prompt or SENTENCE),
        rows=tuple(rows),
        skipped=tuple(skipped),
    )


def _row(
    runtime: Runtime, change: _Change, windows: list[list[int]], prompt: list[int] | None
) -> AblationRow:
    with change.changed():
        value, tokens, norms = measure_row(runtime, windows)
        text = None if prompt is None else _continuation(runtime, prompt)
    return AblationRow(
        what=change.what,
        layers=change.layers,
        detail=change.detail,
        of=change.of,
        perplexity=value,
        tokens=tokens,
        norms=norms,
        continuation=text,
    )


def measure_row(runtime: Runtime, windows: list[list[int]]) -> tuple[float, int, tuple[float, ...]]:
    """Perplexity, predicted tokens, and the median norm of first tokens after each layer."""
    norms: list[list[Any]] = [[] for _ in range(len(runtime.blocks) + 1)]

    def on_state(layer: int, state: Any) -> None:
        norms[layer].append(state[:, 0].float().norm(dim=-1).double().cpu().numpy())

    with runtime.watching(on_state):
        value, tokens = perplexity(runtime, windows)
    return value, tokens, tuple(float(np.median(np.concatenate(row))) for row in norms)


def _prompt(runtime: Runtime, prompt: str | None) -> list[int] | None:
    try:
        return runtime.tokenizer.ids(prompt or SENTENCE)
    except CkptError as problem:
        if prompt is not None:
            raise UsageError(
                f"the prompt cannot be read: {problem.message}",
                path=problem.path,
                hint="leave --prompt out",
            ) from None
        return None


def _continuation(runtime: Runtime, prompt: list[int]) -> str:
    """What the model goes on with, taking the likeliest token each time."""
    torch = libraries.torch()
    device = runtime.model.get_input_embeddings().weight.device
    ids = torch.tensor([prompt], device=device)
    with torch.inference_mode(), libraries.quietly():
        made = runtime.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    return runtime.tokenizer.decode(made[0, len(prompt) :].tolist())


def _trigger(found: _Found, name: Ablated) -> list[_Change]:
    layer = _needed(found.explosion, "explosion", found.peak if found.explosion else 0)
    signed = sign(found.runtime.checkpoint, scope=Scope(layers=(layer,)))
    v = signed.v[0].astype(np.float64)
    other = found.generator.standard_normal(len(v))
    runtime = found.runtime
    return [
        _Change(
            name,
            (layer,),
            f"v1 out of what the FFN of layer {layer} reads",
            lambda: without_direction(runtime, layer, v / np.linalg.norm(v)),
        ),
        _Change(
            "control",
            (layer,),
            f"a random direction out of what the FFN of layer {layer} reads",
            lambda: without_direction(runtime, layer, other / np.linalg.norm(other)),
            of=name,
        ),
    ]


def _massive(found: _Found, name: Ablated) -> list[_Change]:
    layer = _needed(found.explosion, "explosion", found.peak if found.explosion else 0)
    states, threshold = found.high
    coordinates, how = _coordinates(states)
    plain = _ordinary_coordinates(found, states, len(coordinates))
    zero = name == "massive-zero"

    def values(places: list[int]) -> dict[int, float]:
        return {c: 0.0 if zero else float(states[:, c].mean()) for c in places}

    word = "zero" if zero else "their mean"
    runtime = found.runtime
    return [
        _Change(
            name,
            (layer,),
            f"{how} {_listed(coordinates)} of high-norm tokens set to {word} after layer {layer}",
            lambda: setting_coordinates(runtime, layer, values(coordinates), threshold),
        ),
        _Change(
            "control",
            (layer,),
            f"ordinary {_listed(plain)} of high-norm tokens set to {word} after layer {layer}",
            lambda: setting_coordinates(runtime, layer, values(plain), threshold),
            of=name,
        ),
    ]


def _super_weight(found: _Found, name: Ablated) -> list[_Change]:
    wanted = [w for w in found.labels.super_weights if w.layer in found.explosion]
    if not wanted:
        raise NothingAnalysable("no super weight is known in an explosion layer")
    weight = wanted[0]
    layer = weight.layer
    ffn = load_block(found.runtime.checkpoint, layer).ffn
    down = getattr(ffn, "down", None)
    if down is None:
        raise NothingAnalysable(f"layer {layer} has experts: no weight of one is every token's")
    matrix = down.weight
    value = float(matrix[weight.row, weight.column])
    # The weight of the same row that is nearest in size: as large, and no super weight.
    sizes = np.abs(np.abs(matrix[weight.row].astype(np.float64)) - abs(value))
    sizes[weight.column] = np.inf
    column = int(np.argmin(sizes))
    plain = float(matrix[weight.row, column])
    runtime = found.runtime
    place = (weight.row, weight.column)
    zeroed = f"super weight {weight.tensor}[{weight.row}, {weight.column}] = {value:.4g} zeroed"
    changes = [
        _Change(name, (layer,), zeroed, lambda: without_weight(runtime, layer, place, value)),
        _Change(
            "control",
            (layer,),
            f"ordinary weight [{weight.row}, {column}] = {plain:.4g} zeroed",
            lambda: without_weight(runtime, layer, (weight.row, column), plain),
            of=name,
        ),
    ]
    with suppress(NothingAnalysable):  # no token has a high norm: there is nothing to restore
        _, threshold = found.high
        detail = f"{zeroed}, and restored for tokens to which it alone adds over {threshold:.4g}"
        restored = partial(without_weight, runtime, layer, place, value, below=threshold)
        changes.insert(1, _Change(name, (layer,), detail, restored))
    return changes


def _skip(found: _Found, name: Ablated) -> list[_Change]:
    layer = _needed(found.decay, "decay", max(found.decay, default=0))
    marked = {*found.labels.explosion, *found.labels.decay, layer}
    count = len(found.runtime.blocks)
    # An unlabelled layer as near to it as there is, for which depth makes little difference.
    plain = [other for other in range(1, count + 1) if other not in marked]
    runtime = found.runtime
    skip = without_ffn if name == "skip-ffn" else without_blocks
    part = "FFN of layer" if name == "skip-ffn" else "layer"
    made = [_Change(name, (layer,), f"{part} {layer} skipped", lambda: skip(runtime, [layer]))]
    if plain:
        other = min(plain, key=lambda n: (abs(n - layer), n))
        made.append(
            _Change(
                "control",
                (other,),
                f"{part} {other}, which has no label, skipped",
                lambda: skip(runtime, [other]),
                of=name,
            )
        )
    return made


_PLANS: dict[Ablated, Callable[[_Found, Ablated], list[_Change]]] = {
    "trigger": _trigger,
    "massive-zero": _massive,
    "massive-mean": _massive,
    "super-weight": _super_weight,
    "skip-ffn": _skip,
    "skip-block": _skip,
}


def _needed(layers: tuple[int, ...], label: str, chosen: int) -> int:
    if not layers:
        raise NothingAnalysable(f"no {label} layer is found: name one with --layers")
    return chosen


def _coordinates(states: Doubles) -> tuple[list[int], str]:
    """Massive coordinates of most states; the largest one where none is, and what they are."""
    sizes = np.abs(states)
    bound = np.maximum(MASSIVE_SIZE, MASSIVE_RATIO * np.median(sizes, axis=1, keepdims=True))
    often = np.flatnonzero((sizes > bound).mean(axis=0) >= 0.5)
    if often.size:
        return [int(c) for c in often], "massive"
    return [int(np.argmax(sizes.mean(axis=0)))], "the largest (none is massive by definition),"


def _ordinary_coordinates(found: _Found, states: Doubles, count: int) -> list[int]:
    """As many coordinates at random of those whose sizes are below the median."""
    sizes = np.abs(states).mean(axis=0)
    small = np.flatnonzero(sizes <= np.median(sizes))
    return sorted(int(c) for c in found.generator.choice(small, count, replace=False))


def _listed(coordinates: list[int]) -> str:
    word = "coordinate" if len(coordinates) == 1 else "coordinates"
    return f"{word} {', '.join(map(str, coordinates))}"
