"""Tokens of high norm in running text: which, where, and in what direction (Table 2, Fig. 4)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.arrays import Bools, Doubles, Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.findings.model import model_record
from ckptforensics.progress import Progress, running
from ckptforensics.results import Empirical
from ckptforensics.results.empirical import (
    EmpiricalDocument,
    HighNormToken,
    MassiveCoordinate,
    Pattern,
    Plateau,
    PopulationRecord,
)
from ckptforensics.runtime.experiments.populations import Population, find_plateaus, populations
from ckptforensics.runtime.model import Runtime, start
from ckptforensics.runtime.records import running_record, token_texts
from ckptforensics.runtime.texts import Text, as_text, windows_of
from ckptforensics.runtime.weights import Placement
from ckptforensics.version import __version__

# A state is kept until its layer's threshold is known if its norm is this many times the window's
# median, and of each window at most so many.
_CANDIDATE, _MOST_CANDIDATES = 2.0, 64
_TOP = 5
MASSIVE_SIZE, MASSIVE_RATIO = 100.0, 1000.0
# Pairs of more states than these are those of an even choice of them.
_MOST_PAIRED = 2000


@dataclass(frozen=True)
class _States:
    """Candidates after one layer: where they stand, (n, 2) window and position, and themselves."""

    places: list[tuple[int, int]]
    vectors: list[Floats]


def empirical(
    model: Runtime | Checkpoint | str | Path,
    *,
    text: Text | str | None = None,
    threshold: float | None = None,
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Empirical:
    """Find the tokens of high norm in windows of text.

    Parameters
    ----------
    model : a running model, an opened checkpoint or what `open_checkpoint` takes
    text : by default a list of Python's help topics
    threshold : norm above which a token counts, after every layer; by default the gap between the
        two populations of norms after each layer decides
    placement : device and element type, unless the model runs already
    progress : told of each window

    Raises
    ------
    CkptError
        as `open_checkpoint`, `runtime.model.start` and `runtime.texts.windows_of`.
    """
    runtime = start(model, placement)
    windows, record = windows_of(runtime, as_text(text))
    norms, kept = _run(runtime, windows, threshold, progress)
    found = populations(norms, threshold)
    plateaus, directions = [], []
    for first, last in find_plateaus(found):
        plateau, direction = _plateau(runtime, windows, kept, found[first - 1 : last])
        if plateau is not None:
            plateaus.append(plateau)
            directions.append(direction)
    width = runtime.checkpoint.architecture.sizes.hidden_size
    document = EmpiricalDocument(
        tool_version=__version__,
        model=model_record(runtime.checkpoint),
        running=running_record(runtime),
        text=record,
        threshold=threshold,
        plateaus=tuple(plateaus),
        layers=tuple(_record(population) for population in found),
    )
    stacked = np.array(directions, np.float32).reshape(len(directions), width)
    return Empirical(document, stacked)


def _run(
    runtime: Runtime,
    windows: list[list[int]],
    threshold: float | None,
    progress: Progress | None,
) -> tuple[Doubles, list[_States]]:
    """Norms after each layer (layers, windows, tokens), and the states that may be high."""
    count = len(runtime.blocks)
    norms = np.empty((count, len(windows), len(windows[0])))
    kept = [_States([], []) for _ in range(count)]
    with running(progress, "windows", len(windows)) as step:
        for number, window in enumerate(windows):

            def on_state(layer: int, state: Any, number: int = number) -> None:
                if layer == 0:
                    return
                lengths = state[0].float().norm(dim=-1).double().cpu().numpy()
                norms[layer - 1, number] = lengths
                bound = _CANDIDATE * float(np.median(lengths))
                if threshold is not None:
                    bound = min(bound, threshold)
                places = np.flatnonzero(lengths > bound)
                places = places[np.argsort(-lengths[places])][:_MOST_CANDIDATES]
                if places.size:
                    vectors = state[0][places.tolist()].float().cpu().numpy()
                    kept[layer - 1].places.extend((number, int(p)) for p in places)
                    kept[layer - 1].vectors.extend(vectors)

            with runtime.watching(on_state):
                runtime.forward([window])
            step(f"window {number + 1}")
    return norms, kept


def _plateau(
    runtime: Runtime, windows: list[list[int]], kept: list[_States], layers: list[Population]
) -> tuple[Plateau | None, Doubles]:
    """What stands out after these layers, and the mean direction; None if nothing does in most."""
    times: Counter[tuple[int, int]] = Counter()
    chosen: list[tuple[tuple[int, int], Floats]] = []
    for population in layers:
        assert population.threshold is not None
        states = kept[population.layer - 1]
        for place, vector in zip(states.places, states.vectors, strict=True):
            if np.linalg.norm(vector) > population.threshold:
                times[place] += 1
                chosen.append((place, vector))
    places = {place for place, n in times.items() if 2 * n >= len(layers)}
    if not places:
        return None, np.empty(0)
    vectors = np.array([vector for place, vector in chosen if place in places], np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    direction = units.mean(axis=0)
    direction /= np.linalg.norm(direction)
    top = np.argsort(-np.abs(direction))[:_TOP]
    initial = sum(position == 0 for _, position in places)
    return Plateau(
        layers=(layers[0].layer, layers[-1].layer),
        threshold=float(np.median([p.threshold for p in layers if p.threshold is not None])),
        count=len(places),
        states=len(vectors),
        median_norm=float(np.median(lengths)),
        direction_top=tuple((int(i), float(direction[i])) for i in top),
        pairwise_angle_deg=_pairwise_angle(units),
        initial_share=initial / len(places),
        initial_found=initial / len(windows),
        tokens=_tokens(runtime, windows, places),
        massive=_massive(vectors),
    ), direction


def _pairwise_angle(units: Doubles) -> float | None:
    """Mean angle between two different states in degrees; None for a single one."""
    if len(units) > _MOST_PAIRED:
        units = units[np.linspace(0, len(units) - 1, _MOST_PAIRED).astype(int)]
    if len(units) < 2:
        return None
    upper = np.triu_indices(len(units), 1)
    cosines = np.clip((units @ units.T)[upper], -1, 1)
    return float(np.degrees(np.arccos(cosines)).mean())


def _tokens(
    runtime: Runtime, windows: list[list[int]], places: set[tuple[int, int]]
) -> tuple[HighNormToken, ...]:
    """The tokens at these places, the most frequent first."""
    at = Counter((windows[w][p], p) for w, p in places)
    texts = token_texts(runtime, {token for token, _ in at})
    patterns = {token: _pattern(token, windows, places) for token, _ in at}
    order = sorted(at.items(), key=lambda entry: (-entry[1], entry[0][1], entry[0][0]))
    return tuple(
        HighNormToken(
            token=token, text=texts[token], position=position, count=n, pattern=patterns[token]
        )
        for (token, position), n in order
    )


def _pattern(token: int, windows: list[list[int]], places: set[tuple[int, int]]) -> Pattern:
    """When this token has a high norm, over all windows."""
    everywhere = {(w, p) for w, row in enumerate(windows) for p, t in enumerate(row) if t == token}
    high = everywhere & places
    if all(position == 0 for _, position in high):
        return "initial"
    if high == everywhere and len(high) > 1:
        return "every time"
    first = {(w, row.index(token)) for w, row in enumerate(windows) if token in row}
    if high == first:
        return "first of its kind"
    return "every time" if high == everywhere else "sometimes"


def _massive(vectors: Doubles) -> tuple[MassiveCoordinate, ...]:
    """Coordinates over 100 in size and over 1,000 times the median of their state's sizes."""
    sizes = np.abs(vectors)
    is_massive: Bools = (sizes > MASSIVE_SIZE) & (
        sizes > MASSIVE_RATIO * np.median(sizes, axis=1, keepdims=True)
    )
    counts = is_massive.sum(axis=0)
    order = sorted(np.flatnonzero(counts), key=lambda c: (-counts[c], c))
    return tuple(
        MassiveCoordinate(
            coordinate=int(c), mean=float(vectors[is_massive[:, c], c].mean()), count=int(counts[c])
        )
        for c in order
    )


def _record(population: Population) -> PopulationRecord:
    return PopulationRecord(
        layer=population.layer,
        median=population.median,
        ordinary=population.ordinary,
        high=population.high,
        threshold=population.threshold,
        count=population.count,
        ratio=population.ratio,
    )
