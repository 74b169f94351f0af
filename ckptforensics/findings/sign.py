"""Signature and explosion/decay layers: two documents made from the same measurements."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import CkptError
from ckptforensics.findings.accumulated import Accumulated, accumulate
from ckptforensics.findings.bos_token import begin_token
from ckptforensics.findings.cache.key import places, signature_keys
from ckptforensics.findings.cache.store import SignatureCache
from ckptforensics.findings.fingerprint import fingerprint, layer_weights
from ckptforensics.findings.labels import Label, label
from ckptforensics.findings.measure import SHARED, LayerMeasurement, Measurements, measure
from ckptforensics.findings.model import model_record
from ckptforensics.findings.scope import Scope
from ckptforensics.linear import Fit
from ckptforensics.progress import Progress
from ckptforensics.results import (
    AccumulatedRecord,
    Direction,
    ExpertRecord,
    FitOptions,
    LayerEvidence,
    LayersDocument,
    LayerSignature,
    ModelRecord,
    ResponseRecord,
    Signature,
    SignatureDocument,
    SuperWeightRecord,
)
from ckptforensics.sources import sha256_of_file
from ckptforensics.version import __version__

_TOP_COMPONENTS = 5


def sign(
    model: Checkpoint | str | Path,
    *,
    fit: Fit | None = None,
    digest: bool = False,
    progress: Progress | None = None,
    cache: SignatureCache | None = None,
    scope: Scope | None = None,
) -> Signature:
    """The signature of a checkpoint: its singular defect directions, layer by layer.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    fit : of the FFN, `canonical` by default
    digest : also compute the SHA-256 of whole files
    progress : told of each layer
    cache : where to look for the signature first and to keep it, and the layers finished so far
        while it is made; by default nothing is kept
    scope : what is measured, by default everything; a signature of some layers has no fingerprint,
        and is neither kept nor looked for

    Returns
    -------
    Signature, whose arrays have shapes (layers, hidden_size), (layers, 2) and (layers,) for the
    layers of which something is analysed

    Raises
    ------
    CkptError
        if the checkpoint cannot be opened, decoded or analysed; see `open_checkpoint`.
    """
    checkpoint = _opened(model)
    fit = fit or Fit()
    scope = scope or Scope()
    if cache is not None and scope.whole:
        return _sign_with(cache, checkpoint, fit, digest, scope, progress)
    record = model_record(checkpoint, digest=digest, progress=progress)
    measured = measure(checkpoint, fit, with_eigenvalues=False, progress=progress, scope=scope)
    return _signature(measured, fit, record, whole=scope.layers is None)


def _sign_with(
    cache: SignatureCache,
    checkpoint: Checkpoint,
    fit: Fit,
    digest: bool,
    scope: Scope,
    progress: Progress | None,
) -> Signature:
    """The signature from the cache, or measured from where an interrupted run stopped and kept."""
    files = places(checkpoint)
    record = model_record(checkpoint, digest=digest, progress=progress)
    paths = [container.path for container in checkpoint.store.containers]
    pairs = zip(paths, record.files, strict=True)
    sha256 = {path: file.sha256 for path, file in pairs if file.sha256 is not None}
    keys = signature_keys(checkpoint, fit, sha256)
    found = cache.get(keys)
    if found is not None:
        # Names and digests are those of the files as they were found now.
        afresh = {"model": record, "fit_options": _fit_options(fit)}
        return replace(found, document=found.document.model_copy(update=afresh))
    journal = cache.partial(keys[0], len(checkpoint.architecture.analysed))
    try:
        measured = measure(
            checkpoint,
            fit,
            with_eigenvalues=False,
            progress=progress,
            journal=journal,
            scope=scope,
        )
    except KeyboardInterrupt:
        journal.flush()
        raise
    signature = _signature(measured, fit, record, whole=True)
    with suppress(CkptError):
        # What was measured of files that changed meanwhile is the signature of neither.
        if places(checkpoint) == files:
            cache.put(keys, signature)
    journal.discard()
    return signature


def _signature(measured: Measurements, fit: Fit, record: ModelRecord, *, whole: bool) -> Signature:
    labels = [label(m) for m in measured.layers]
    u, sigma = measured.u, measured.sigma
    v = np.stack([_positive(m.trigger_direction) for m in measured.layers]).astype(np.float32)
    residual = np.array([m.spectrum.residuals[0] for m in measured.layers], np.float32)
    layers = tuple(
        LayerSignature(
            layer=m.layer,
            prefix=m.prefix,
            sigma=m.sigma,
            gap=m.gap,
            residual=float(m.spectrum.residuals[0]),
            direction_top=_top(m.spectrum.left[:, 0]),
        )
        for m in measured.layers
    )
    document = SignatureDocument(
        tool_version=__version__,
        fingerprint=fingerprint(u, sigma) if whole else None,
        model=record,
        fit=fit.kind,
        fit_options=_fit_options(fit),
        layers=layers,
        direction=_shared_direction(measured),
        explosion=_labelled(measured, labels, "explosion"),
        decay=_labelled(measured, labels, "decay"),
        skipped=measured.skipped,
    )
    return Signature(document, u, v, sigma, residual)


def find_layers(
    model: Checkpoint | str | Path,
    *,
    fit: Fit | None = None,
    accumulated: bool = False,
    progress: Progress | None = None,
    scope: Scope | None = None,
) -> LayersDocument:
    """Explosion and decay layers, each with its evidence, and the super weights.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    fit : of the FFN, `canonical` by default
    accumulated : also the directions of the products L_i ... L_1, in a second pass
    progress : told of each layer
    scope : what is measured, by default everything; `accumulated` takes all layers

    Raises
    ------
    CkptError
        if the checkpoint cannot be opened, decoded or analysed; see `open_checkpoint`.
    """
    checkpoint = _opened(model)
    fit = fit or Fit()
    measured = measure(checkpoint, fit, with_eigenvalues=True, progress=progress, scope=scope)
    products = accumulate(checkpoint, fit=fit, progress=progress) if accumulated else ()
    labels = [label(m) for m in measured.layers]
    return LayersDocument(
        tool_version=__version__,
        model=model_record(checkpoint),
        fit=fit.kind,
        fit_options=_fit_options(fit),
        direction=_shared_direction(measured),
        explosion=_labelled(measured, labels, "explosion"),
        decay=_labelled(measured, labels, "decay"),
        layers=tuple(_evidence(m, x) for m, x in zip(measured.layers, labels, strict=True)),
        begin_token=begin_token(measured, checkpoint.architecture.bos_token_id),
        super_weights=_super_weights(measured),
        accumulated=tuple(_accumulated(a) for a in products),
        skipped=measured.skipped,
    )


def _opened(model: Checkpoint | str | Path) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else open_checkpoint(model)


def _evidence(m: LayerMeasurement, found: Label) -> LayerEvidence:
    ratio = None
    if m.before is not None and m.after is not None and m.before.median > 0:
        ratio = m.after.median / m.before.median
    return LayerEvidence(
        layer=m.layer,
        prefix=m.prefix,
        sigma=m.sigma,
        gap=m.gap,
        trigger_norm=m.trigger.norm,
        rollout_ratio=ratio,
        response=_response(m),
        experts=tuple(
            ExpertRecord(name=e.name, weight=e.weight, sigma=e.sigma, trigger_norm=e.trigger.norm)
            for e in m.experts
        ),
        eigenvalue=m.eigenvalue,
        label=found.name,
        strength=found.strength,
        evidence=found.evidence,
    )


def _accumulated(a: Accumulated) -> AccumulatedRecord:
    return AccumulatedRecord(
        layer=a.layer,
        prefix=a.prefix,
        log10_sigma=a.log10_sigma,
        gap=a.gap,
        residual=a.residual,
        angle_deg=float(np.degrees(np.arccos(a.layer_cosine))),
        direction_top=_top(a.direction),
    )


def _response(m: LayerMeasurement) -> ResponseRecord | None:
    if m.response is None:
        return None
    return ResponseRecord(
        direction="tokens" if m.probed_tokens else "u1",
        size=m.probe_size,
        plus=m.response.plus,
        minus=m.response.minus,
    )


def _super_weights(measured: Measurements) -> tuple[SuperWeightRecord, ...]:
    records = []
    for m in measured.layers:
        # In a layer of experts, each also answers its own trigger.
        answers = [m.trigger, *(e.trigger for e in m.experts)]
        best = max((t.super_weight for t in answers), key=lambda w: abs(w.amplitude))
        records.append(
            SuperWeightRecord(
                layer=m.layer,
                tensor=best.tensor,
                row=best.row,
                column=best.column,
                value=best.value,
                amplitude=best.amplitude,
            )
        )
    return tuple(sorted(records, key=lambda r: -abs(r.amplitude)))


def _shared_direction(measured: Measurements) -> Direction:
    """The tokens' direction where their norm peaks, if they share one there; else the layers'."""
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
            top=_top(_positive(state.direction)),
        )
    weighted = measured.u * np.sqrt(layer_weights(measured.sigma))[:, None]
    _, s, vt = np.linalg.svd(weighted.astype(np.float64), full_matrices=False)
    total = float(np.sum(s**2))
    return Direction(
        source="spectrum",
        layer=None,
        concentration=float(s[0] ** 2) / total if total > 0 else 0.0,
        top=_top(_positive(vt[0])),
    )


def _labelled(measured: Measurements, labels: list[Label], name: str) -> tuple[int, ...]:
    pairs = zip(measured.layers, labels, strict=True)
    return tuple(m.layer for m, found in pairs if found.name == name)


def _fit_options(fit: Fit) -> FitOptions | None:
    if fit.kind != "sampled":
        return None
    if fit.calibration is not None:
        return FitOptions(calibration_sha256=sha256_of_file(fit.calibration.path))
    return FitOptions(samples=fit.samples, seed=fit.seed)


def _positive(direction: Doubles) -> Doubles:
    """The direction with its largest component made positive."""
    return -direction if direction[np.argmax(np.abs(direction))] < 0 else direction


def _top(direction: Doubles) -> tuple[tuple[int, float], ...]:
    largest = np.argsort(-np.abs(direction), kind="stable")[:_TOP_COMPONENTS]
    return tuple((int(i), float(direction[i])) for i in largest)
