"""Explosion and decay layers, each with its evidence, and the super weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.errors import UsageError
from ckptforensics.findings.accumulated import Accumulated, accumulate
from ckptforensics.findings.bos_token import begin_token
from ckptforensics.findings.damage import with_damage
from ckptforensics.findings.labels import Label, label
from ckptforensics.findings.measure import LayerMeasurement, Measurements, measure
from ckptforensics.findings.model import model_record, opened
from ckptforensics.findings.scope import Scope
from ckptforensics.findings.summary import (
    fit_options,
    labelled,
    positive,
    shared_direction,
    top_components,
)
from ckptforensics.findings.triggers import trigger_tokens
from ckptforensics.linear import Fit
from ckptforensics.progress import Progress
from ckptforensics.results import (
    AccumulatedRecord,
    Empirical,
    EmpiricalAngles,
    ExpertRecord,
    LayerEvidence,
    LayersDocument,
    ResponseRecord,
    SuperWeightRecord,
    TriggerToken,
)
from ckptforensics.version import __version__


@all_cores()
def find_layers(
    model: Checkpoint | str | Path,
    *,
    fit: Fit | None = None,
    accumulated: bool = False,
    empirical: Empirical | None = None,
    progress: Progress | None = None,
    scope: Scope | None = None,
) -> LayersDocument:
    """Explosion and decay layers, each with its evidence, and the super weights.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    fit : of the FFN, `canonical` by default
    accumulated : also the directions of the products L_i ... L_1, in a second pass
    empirical : directions of tokens in running text (the runtime's `empirical`), whose angles to
        u1 of every layer and nearest eigenpairs of R are added (the paper's Fig. 4 and 5)
    progress : told of each layer
    scope : what is measured, by default everything; `accumulated` takes all layers

    Raises
    ------
    UsageError
        if the empirical directions have another width.
    CkptError
        if the checkpoint cannot be opened, decoded or analysed; see `open_checkpoint`.
    """
    checkpoint = opened(model)
    width = checkpoint.architecture.sizes.hidden_size
    if empirical is not None and empirical.direction.shape[1] != width:
        raise UsageError(
            f"the empirical directions have {empirical.direction.shape[1]:,} coordinates and the "
            f"model has {width:,}",
            hint="give those of this model",
        )
    fit = fit or Fit()
    directions = () if empirical is None else tuple(empirical.direction.astype(np.float64))
    measured = measure(checkpoint, fit, eigenpairs=directions, progress=progress, scope=scope)
    products = accumulate(checkpoint, fit=fit, progress=progress) if accumulated else ()
    labels = [label(m) for m in measured.layers]
    pairs = list(zip(measured.layers, labels, strict=True))
    triggers = {m.layer: positive(m.trigger_direction) for m, x in pairs if x.name == "explosion"}
    tokens = trigger_tokens(checkpoint, triggers)
    return LayersDocument(
        tool_version=__version__,
        model=with_damage(model_record(checkpoint), checkpoint, (m.layer for m in measured.layers)),
        fit=fit.kind,
        fit_options=fit_options(fit),
        direction=shared_direction(measured),
        explosion=labelled(measured, labels, "explosion"),
        decay=labelled(measured, labels, "decay"),
        layers=tuple(_evidence(m, x, tokens.get(m.layer, ())) for m, x in pairs),
        begin_token=begin_token(measured, checkpoint.architecture.bos_token_id),
        super_weights=_super_weights(measured),
        accumulated=tuple(_accumulated(a) for a in products),
        empirical=() if empirical is None else _angles(measured, empirical),
        skipped=measured.skipped,
    )


def _evidence(m: LayerMeasurement, found: Label, tokens: tuple[TriggerToken, ...]) -> LayerEvidence:
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
        trigger_top=top_components(positive(m.trigger_direction)),
        trigger_tokens=tokens,
    )


def _angles(measured: Measurements, empirical: Empirical) -> tuple[EmpiricalAngles, ...]:
    u1 = np.stack([m.spectrum.left[:, 0] for m in measured.layers]).astype(np.float64)
    cosines = np.abs(empirical.direction.astype(np.float64) @ u1.T).clip(0, 1)
    return tuple(
        EmpiricalAngles(
            plateau=plateau.layers,
            angles_deg=tuple(np.degrees(np.arccos(row)).tolist()),
            eigenvalues=tuple(m.near[i] for m in measured.layers),
        )
        for i, (plateau, row) in enumerate(zip(empirical.document.plateaus, cosines, strict=True))
    )


def _accumulated(a: Accumulated) -> AccumulatedRecord:
    return AccumulatedRecord(
        layer=a.layer,
        prefix=a.prefix,
        log10_sigma=a.log10_sigma,
        gap=a.gap,
        residual=a.residual,
        angle_deg=float(np.degrees(np.arccos(a.layer_cosine))),
        direction_top=top_components(a.direction),
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
