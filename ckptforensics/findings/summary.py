"""What signatures and layers' reports both say of a measured model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.findings.fingerprint import layer_weights
from ckptforensics.findings.labels import Label
from ckptforensics.findings.measure import SHARED, Measurements
from ckptforensics.linear import Fit
from ckptforensics.results import Direction, FitOptions
from ckptforensics.sources import sha256_of_file

_TOP_COMPONENTS = 5


def shared_direction(measured: Measurements) -> Direction:
    """The tokens' direction where their norm peaks, if they share one there; else the layers'.

    Layers that do nothing have none.
    """
    if measured.idle:
        return Direction(source="none", layer=None, concentration=0.0, top=())
    start = measured.layers[0].before
    # What is shared before the norm has grown is the embeddings' own mean.
    shared = [
        (m.layer, m.after)
        for m in measured.layers
        if m.after is not None
        and start is not None
        and m.after.concentration >= SHARED
        and m.after.median >= 2 * start.median
    ]
    if shared:
        layer, state = max(shared, key=lambda pair: pair[1].median)
        return Direction(
            source="rollout",
            layer=layer,
            concentration=state.concentration,
            top=top_components(positive(state.direction)),
        )
    weighted = measured.u * np.sqrt(layer_weights(measured.sigma))[:, None]
    _, s, vt = np.linalg.svd(weighted.astype(np.float64), full_matrices=False)
    total = float(np.sum(s**2))
    return Direction(
        source="spectrum",
        layer=None,
        concentration=float(s[0] ** 2) / total if total > 0 else 0.0,
        top=top_components(positive(vt[0])),
    )


def labelled(measured: Measurements, labels: Sequence[Label], name: str) -> tuple[int, ...]:
    """Numbers of the layers with a label of this name."""
    pairs = zip(measured.layers, labels, strict=True)
    return tuple(m.layer for m, found in pairs if found.name == name)


def token_norms(
    measured: Measurements, begin: int | None
) -> list[tuple[float | None, float | None]]:
    """Norms after each measured layer: of the begin-of-sequence token, and the others' median.

    None for what was not rolled out so far.

    Parameters
    ----------
    begin : id of the begin-of-sequence token, None where the checkpoint names none
    """
    is_begin = np.array(measured.tokens or ()) == begin

    def middle(norms: Doubles) -> float | None:
        return float(np.median(norms)) if norms.size else None

    return [
        (None, None)
        if m.after is None
        else (middle(m.after.norms[is_begin]), middle(m.after.norms[~is_begin]))
        for m in measured.layers
    ]


def fit_options(fit: Fit) -> FitOptions | None:
    """What decides a sampled fit; None for a closed form."""
    if fit.kind != "sampled":
        return None
    if fit.calibration is not None:
        return FitOptions(calibration_sha256=sha256_of_file(fit.calibration.path))
    return FitOptions(samples=fit.samples, seed=fit.seed)


def positive(direction: Doubles) -> Doubles:
    """The direction with its largest component made positive."""
    return -direction if direction[np.argmax(np.abs(direction))] < 0 else direction


def top_components(direction: Doubles) -> tuple[tuple[int, float], ...]:
    """The largest components of a direction, with their coordinates."""
    largest = np.argsort(-np.abs(direction), kind="stable")[:_TOP_COMPONENTS]
    return tuple((int(i), float(direction[i])) for i in largest)
