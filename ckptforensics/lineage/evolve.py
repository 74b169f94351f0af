"""Norms and directions along a training run, or along a chain of fine-tunes.

All of it is read off signatures: nothing is measured here. Directions are compared as lines in the
stored basis, which training and fine-tuning keep; a checkpoint in another basis is seen as one
whose directions all turned at once, and `lineage.compare` is what tells why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.errors import UsageError
from ckptforensics.findings.cache.store import SignatureCache
from ckptforensics.findings.scope import Scope
from ckptforensics.findings.sign import sign
from ckptforensics.lineage.compare import name_apart, require_one_fit
from ckptforensics.lineage.models import Model
from ckptforensics.linear import Fit
from ckptforensics.progress import Progress
from ckptforensics.results import Signature, Skipped
from ckptforensics.results.evolution import (
    AngleRecord,
    EvolutionDocument,
    EvolvedCheckpoint,
    EvolvedLayer,
    LayerEvolution,
    NormPeak,
    NormPeaks,
)
from ckptforensics.version import __version__

# Gap of L from which u1 is called clear. In the trained models of fixtures/zoo a full fine-tune
# turns u1 by 12 to 21 degrees where parent and child have a larger one, else by 15 to 80.
CLEAR_GAP = 1.05
# Two directions are the same one, turned, below this angle; random ones are near 90 degrees.
APPEARS_DEG = 45.0
# Default angle to the last checkpoint below which a direction has settled.
SETTLES_DEG = 10.0
# Bound on the error of a direction that was not found exactly, in radians.
_UNDETERMINED = 0.1
# Singular values this near to 1 are those of a layer that adds nothing.
_ONE = 1e-6
# `checkpoint-500`, `step_000500`, `global_step500`, `iter-500`, `org/name@step500`.
_STEP = re.compile(
    r"(?:^|[^a-z])(?:checkpoint|ckpt|(?:global[-_]?)?step|iter(?:ation)?|epoch)s?[-_=.]?(\d{1,15})"
    r"(?![\da-z]|\.\d)",
    re.IGNORECASE,
)

Label = Literal["explosion", "decay"]


class Step(NamedTuple):
    """A checkpoint with its step, and the rows of its signature that are compared."""

    step: int
    name: str
    signature: Signature
    rows: list[int]


def signatures(
    models: Sequence[Model],
    *,
    fit: Fit | None = None,
    scope: Scope | None = None,
    cache: SignatureCache | None = None,
    progress: Progress | None = None,
) -> list[Signature]:
    """The signatures of checkpoints of one network: saved, from the cache, or measured.

    Parameters
    ----------
    fit, scope, cache, progress : as `sign` takes them; of saved signatures they are what they are

    Raises
    ------
    UsageError
        for fewer than two models, models of different sizes, or saved signatures that were made
        in different ways.
    CkptError
        if one cannot be analysed.
    """
    if len(models) < 2:
        raise UsageError("an evolution needs two checkpoints", hint="give another one")
    name_apart(models)
    _require_one_size(models)
    for model in models:
        if model.checkpoint is not None:
            found = sign(model.weights, fit=fit, scope=scope, cache=cache, progress=progress)
            model.take(found)
    require_one_fit(models)
    return [model.signature for model in models]


def evolve(
    names: Sequence[str],
    signed: Sequence[Signature],
    *,
    steps: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    settles_deg: float = SETTLES_DEG,
) -> EvolutionDocument:
    """How norms and directions evolve from the first checkpoint to the last.

    Parameters
    ----------
    names : of the checkpoints; where all have a step in them, such as `checkpoint-500`, and no two
        the same, they are put in the order of their steps
    signed : their signatures, as many
    steps : numbers in increasing order, in place of those in the names
    layers : numbers from 1, by default all
    settles_deg : angle to the last checkpoint below which a direction has settled

    Raises
    ------
    UsageError
        if `steps` are not as many or do not increase, or a layer is not in all signatures.
    """
    taken, source = steps_of(names, steps)
    chosen = _layers(names, signed, layers)
    run = sorted(
        (
            Step(step, name, one, [_place(one, layer) for layer in chosen])
            for step, name, one in zip(taken, names, signed, strict=True)
        ),
        key=lambda one: one.step,
    )
    by_layer = [_layer(run, place, settles_deg) for place in range(len(chosen))]
    last = run[-1].signature.document
    defect = _defect_layer(by_layer)
    peaks = [_peaks(one) for one in run]
    whole = NormPeaks(
        initial=_highest(peak.initial for peak in peaks),
        typical=_highest(peak.typical for peak in peaks),
    )
    return EvolutionDocument(
        tool_version=__version__,
        fit=last.fit,
        fit_options=last.fit_options,
        steps_from=source,
        clear_gap=CLEAR_GAP,
        appears_deg=APPEARS_DEG,
        settles_deg=settles_deg,
        defect_layer=None if defect is None else defect.layer,
        norm_peak=whole,
        label_comes=_label_comes(defect, whole.typical),
        checkpoints=tuple(
            _checkpoint(one, peak, defect, place)
            for place, (one, peak) in enumerate(zip(run, peaks, strict=True))
        ),
        layers=tuple(by_layer),
        skipped=tuple(row for one in run for row in _skipped(one)),
    )


def steps_of(
    names: Sequence[str], given: Sequence[int] | None
) -> tuple[Sequence[int], Literal["names", "given", "order"]]:
    """The checkpoints' steps, and where they come from; UsageError as `evolve`."""
    if given is not None:
        if len(given) != len(names):
            raise UsageError(
                f"there are {len(names)} checkpoints and {len(given)} steps",
                hint="give --steps one number a checkpoint, in their order",
            )
        if any(a >= b for a, b in pairwise(given)):
            raise UsageError(
                "the steps do not increase", hint="give the checkpoints and --steps in order"
            )
        return given, "given"
    found = [_STEP.findall(name) for name in names]
    # The last one: what is nearest to the checkpoint.
    steps = [int(numbers[-1]) for numbers in found if numbers]
    if len(set(steps)) == len(names):
        return steps, "names"
    return range(1, len(names) + 1), "order"


def _require_one_size(models: Sequence[Model]) -> None:
    sizes = [(model.hidden_size, _depth(model)) for model in models]
    common = Counter(sizes).most_common(1)[0][0]
    for model, size in zip(models, sizes, strict=True):
        if size != common:
            other = models[sizes.index(common)].name
            raise UsageError(
                f"{model.name} has {size[1]} layers of width {size[0]:,}, and {other} has "
                f"{common[1]} of width {common[0]:,}",
                hint="give checkpoints of one network; 'ckpt compare' takes models of other sizes",
            )


def _depth(model: Model) -> int:
    if model.checkpoint is None:
        return model.signature.document.model.num_layers
    return len(model.checkpoint.architecture.layers)


def _layers(
    names: Sequence[str], signed: Sequence[Signature], wanted: Sequence[int] | None
) -> list[int]:
    """The layers to compare: those wanted, or all that every signature has."""
    known = [{row.layer for row in one.document.layers} for one in signed]
    if wanted is None:
        everywhere = sorted(set.intersection(*known))
        if not everywhere:
            raise UsageError(
                "no layer is in all signatures", hint="sign the checkpoints without --layers"
            )
        return everywhere
    for name, layers in zip(names, known, strict=True):
        for layer in wanted:
            if layer not in layers:
                raise UsageError(
                    f"the signature of {name} has no layer {layer}", hint="change --layers"
                )
    return sorted(set(wanted))


def _place(signature: Signature, layer: int) -> int:
    return [row.layer for row in signature.document.layers].index(layer)


def _layer(run: Sequence[Step], place: int, settles_deg: float) -> LayerEvolution:
    """One layer along the run, `place` its row among those that are compared."""
    sides = [_Side.of(one, place) for one in run]
    states = tuple(
        EvolvedLayer(
            step=one.step,
            label=side.label,
            sigma=side.sigma,
            gap=side.gap,
            initial_norm=side.norms[0],
            typical_norm=side.norms[1],
            u_previous=_between(side, sides[i - 1]) if i else None,
            u_last=_between(side, sides[-1]) if i < len(run) - 1 else None,
            v_previous_deg=_triggers(side, sides[i - 1]) if i else None,
            v_last_deg=_triggers(side, sides[-1]) if i < len(run) - 1 else None,
        )
        for i, (one, side) in enumerate(zip(run, sides, strict=True))
    )
    row = run[-1].signature.document.layers[run[-1].rows[place]]
    label = states[-1].label

    def near(limit: float) -> Callable[[EvolvedLayer], bool]:
        return lambda s: s.u_last is not None and s.u_last.clear and s.u_last.degrees < limit

    return LayerEvolution(
        layer=row.layer,
        prefix=row.prefix,
        label=label,
        # The last checkpoint is near itself whatever it is.
        appears=_since(states[:-1], near(APPEARS_DEG)),
        settles=_since(states[:-1], near(settles_deg)),
        labelled=None if label is None else _since(states, lambda s: s.label == label),
        checkpoints=states,
    )


class _Side(NamedTuple):
    """One layer of one checkpoint."""

    u: Doubles
    v: Doubles
    sigma: tuple[float, float]
    gap: float
    clear: bool
    label: Label | None
    norms: tuple[float | None, float | None]

    @classmethod
    def of(cls, one: Step, place: int) -> _Side:
        signature, row = one.signature, one.rows[place]
        document, record = signature.document, signature.document.layers[row]
        s1, s2 = record.sigma
        separation = 1 - s2 / s1 if s1 > 0 else 0.0
        found: Label | None = None
        if record.layer in document.explosion:
            found = "explosion"
        elif record.layer in document.decay:
            found = "decay"
        return cls(
            u=signature.u[row].astype(np.float64),
            v=signature.v[row].astype(np.float64),
            sigma=record.sigma,
            gap=record.gap,
            clear=record.gap >= CLEAR_GAP and record.residual < _UNDETERMINED * separation,
            label=found,
            norms=(record.initial_norm, record.typical_norm),
        )

    @property
    def idle(self) -> bool:
        """Whether the layer passes on what it gets, so that its vectors are those of a guess."""
        return max(abs(s - 1) for s in self.sigma) < _ONE


def _between(a: _Side, b: _Side) -> AngleRecord | None:
    if a.idle or b.idle:
        return None
    return AngleRecord(degrees=_acute(a.u, b.u), clear=a.clear and b.clear)


def _triggers(a: _Side, b: _Side) -> float | None:
    return None if a.idle or b.idle else _acute(a.v, b.v)


def _acute(a: Doubles, b: Doubles) -> float:
    """Angle in degrees between two lines: a singular vector's sign means nothing.

    Of the sine too: near 0 the cosine, whose digits end at 1, tells angles below 0.02 degrees from
    each other by nothing.
    """
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    cosine = float(a @ b)
    across = float(np.linalg.norm(a - cosine * b))
    return float(np.degrees(np.arctan2(across, abs(cosine))))


def _since(states: Sequence[EvolvedLayer], holds: Callable[[EvolvedLayer], bool]) -> int | None:
    """The first step from which on it holds; None if it does not at the end."""
    first = None
    for state in reversed(states):
        if not holds(state):
            break
        first = state.step
    return first


def _defect_layer(layers: Sequence[LayerEvolution]) -> LayerEvolution | None:
    for label in ("explosion", "decay"):
        found = [one for one in layers if one.label == label]
        if found:
            return max(found, key=lambda one: one.checkpoints[-1].gap)
    return None


def _peaks(one: Step) -> NormPeaks:
    rows = [one.signature.document.layers[row] for row in one.rows]

    def highest(norms: Sequence[float | None]) -> NormPeak | None:
        return _highest(
            NormPeak(step=one.step, layer=row.layer, norm=norm)
            for row, norm in zip(rows, norms, strict=True)
            if norm is not None
        )

    return NormPeaks(
        initial=highest([row.initial_norm for row in rows]),
        typical=highest([row.typical_norm for row in rows]),
    )


def _highest(peaks: Iterable[NormPeak | None]) -> NormPeak | None:
    return max((p for p in peaks if p is not None), key=lambda p: p.norm, default=None)


def _label_comes(
    defect: LayerEvolution | None, peak: NormPeak | None
) -> Literal["before", "with", "after"] | None:
    if defect is None or defect.labelled is None or peak is None:
        return None
    if defect.labelled == peak.step:
        return "with"
    return "before" if defect.labelled < peak.step else "after"


def _checkpoint(
    one: Step, peaks: NormPeaks, defect: LayerEvolution | None, place: int
) -> EvolvedCheckpoint:
    document = one.signature.document
    state = None if defect is None else defect.checkpoints[place]
    if not (document.explosion or document.decay):
        state = None
    return EvolvedCheckpoint(
        step=one.step,
        name=one.name,
        model=document.model,
        fingerprint=document.fingerprint,
        explosion=document.explosion,
        decay=document.decay,
        direction=document.direction,
        norm_peak=peaks,
        u_previous=None if state is None else state.u_previous,
        u_last=None if state is None else state.u_last,
    )


def _skipped(one: Step) -> list[Skipped]:
    document = one.signature.document
    rows = [Skipped(what=f"{one.name}: {s.what}", reason=s.reason) for s in document.skipped]
    rolled = not any(row.what == "single-token rollout" for row in document.skipped)
    if rolled and all(document.layers[row].typical_norm is None for row in one.rows):
        reason = "the signature was saved by a version that kept none; sign the checkpoint again"
        rows.append(Skipped(what=f"{one.name}: norms of tokens", reason=reason))
    return rows
