"""The signature of a checkpoint: measured, or taken from the cache."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import CkptError
from ckptforensics.findings.cache.key import places, signature_keys
from ckptforensics.findings.cache.store import SignatureCache
from ckptforensics.findings.damage import with_damage
from ckptforensics.findings.fingerprint import fingerprint
from ckptforensics.findings.labels import label
from ckptforensics.findings.measure import Measurements, measure
from ckptforensics.findings.model import model_record, opened, require_unchanged
from ckptforensics.findings.scope import Scope
from ckptforensics.findings.summary import (
    fit_options,
    labelled,
    positive,
    shared_direction,
    token_norms,
    top_components,
)
from ckptforensics.linear import Fit
from ckptforensics.progress import Progress
from ckptforensics.results import (
    LayerSignature,
    ModelRecord,
    Signature,
    SignatureDocument,
)
from ckptforensics.version import __version__


@all_cores()
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
    checkpoint = opened(model)
    fit = fit or Fit()
    scope = scope or Scope()
    if cache is not None and scope.whole:
        return _sign_with(cache, checkpoint, fit, digest, scope, progress)
    record = model_record(checkpoint, digest=digest, progress=progress)
    measured = measure(checkpoint, fit, eigenpairs=None, progress=progress, scope=scope)
    record = with_damage(record, checkpoint, (m.layer for m in measured.layers))
    if digest:
        require_unchanged(checkpoint)
    return _signature(checkpoint, measured, fit, record, whole=scope.layers is None)


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
        # Names and digests are those of the files as they were found now, and this version of the
        # tool would have measured the same.
        afresh = {
            "model": _damaged_as(record, found.document.model),
            "fit_options": fit_options(fit),
            "tool_version": __version__,
        }
        return replace(found, document=found.document.model_copy(update=afresh))
    journal = cache.journal(keys[0], len(checkpoint.architecture.analysed))
    try:
        measured = measure(
            checkpoint,
            fit,
            eigenpairs=None,
            progress=progress,
            journal=journal,
            scope=scope,
        )
    except KeyboardInterrupt:
        journal.flush()
        raise
    record = with_damage(record, checkpoint, (m.layer for m in measured.layers))
    if digest:
        require_unchanged(checkpoint)
    signature = _signature(checkpoint, measured, fit, record, whole=True)
    with suppress(CkptError):
        # What was measured of files that changed meanwhile is the signature of neither.
        if places(checkpoint) == files:
            cache.put(keys, signature)
    journal.discard()
    return signature


def _damaged_as(record: ModelRecord, found: ModelRecord) -> ModelRecord:
    """The record with the damage found of the same files, which may have had other names."""
    names = {old.name: new.name for old, new in zip(found.files, record.files, strict=True)}
    damage = tuple(d.model_copy(update={"file": names.get(d.file, d.file)}) for d in found.damage)
    return record.model_copy(update={"damage": damage, "examined": found.examined})


def _signature(
    checkpoint: Checkpoint, measured: Measurements, fit: Fit, record: ModelRecord, *, whole: bool
) -> Signature:
    labels = [label(m) for m in measured.layers]
    u, sigma = measured.u, measured.sigma
    v = np.stack([positive(m.trigger_direction) for m in measured.layers]).astype(np.float32)
    residual = np.array([m.spectrum.residuals[0] for m in measured.layers], np.float32)
    norms = token_norms(measured, checkpoint.architecture.bos_token_id)
    layers = tuple(
        LayerSignature(
            layer=m.layer,
            prefix=m.prefix,
            sigma=m.sigma,
            gap=m.gap,
            residual=float(m.spectrum.residuals[0]),
            direction_top=top_components(m.spectrum.left[:, 0]),
            initial_norm=initial,
            typical_norm=typical,
        )
        for m, (initial, typical) in zip(measured.layers, norms, strict=True)
    )
    document = SignatureDocument(
        tool_version=__version__,
        fingerprint=fingerprint(u, sigma) if whole and not measured.idle else None,
        model=record,
        fit=fit.kind,
        fit_options=fit_options(fit),
        layers=layers,
        direction=shared_direction(measured),
        explosion=labelled(measured, labels, "explosion"),
        decay=labelled(measured, labels, "decay"),
        skipped=measured.skipped,
    )
    return Signature(document, u, v, sigma, residual)
