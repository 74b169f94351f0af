"""The result of `layers`: each layer's label with its evidence, and what stands out beside it."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import (
    Direction,
    Document,
    Finite,
    FitOptions,
    Frozen,
    IndexedValue,
    ModelRecord,
    Name,
    Skipped,
)


class ResponseRecord(Frozen):
    """Signed amount the true block adds along the probed direction u at +c u and at -c u.

    `direction` says what u is: the one that the tokens entering the layer share, or u1 of L where
    they share none; `size` is c.
    """

    direction: Literal["tokens", "u1"]
    size: Finite
    plus: Finite
    minus: Finite


class Eigenvalue(Frozen):
    """The eigenpair of R nearest a direction, and |R q - lambda q| / |lambda|."""

    real: Finite
    imag: Finite
    angle_deg: Finite
    residual: Finite


class ExpertRecord(Frozen):
    """One expert of a layer: its mean weight in F, s1 of its own F, its answer to its trigger."""

    name: str
    weight: Finite
    sigma: Finite
    trigger_norm: Finite


class TriggerToken(Frozen):
    """A token by the cosine of its embedding with a layer's trigger direction.

    `text` is its string in the checkpoint's vocabulary, null where that is not known.
    """

    token: int
    text: Name | None
    cosine: Finite


class LayerEvidence(Frozen):
    """What is known of one layer, its label, and the evidence in words.

    `strength` is the share of the label's criteria that hold; null without a label.
    """

    layer: int
    prefix: str
    sigma: tuple[Finite, Finite]
    gap: Finite
    trigger_norm: Finite
    rollout_ratio: Finite | None
    response: ResponseRecord | None
    eigenvalue: Eigenvalue | None
    label: Literal["explosion", "decay"] | None
    strength: Finite | None
    evidence: tuple[str, ...]
    experts: tuple[ExpertRecord, ...] = ()
    trigger_top: tuple[IndexedValue, ...] = ()
    trigger_tokens: tuple[TriggerToken, ...] = ()

    @property
    def strongest_experts(self) -> list[ExpertRecord]:
        """The experts, the strongest answer to its own trigger first."""
        return sorted(self.experts, key=lambda expert: -expert.trigger_norm)


class SuperWeightRecord(Frozen):
    """An entry of a down projection and what it adds to its row when the layer is triggered."""

    layer: int
    tensor: str
    row: int
    column: int
    value: Finite
    amplitude: Finite


class AccumulatedRecord(Frozen):
    """Leading left singular vector u1 of the product of this layer's L and all before it.

    `log10_sigma` is log10 of its singular value, `angle_deg` the acute angle between it and u1 of
    this layer's L alone; `gap`, `residual` and `direction_top` are as in a signature.
    """

    layer: int
    prefix: str
    log10_sigma: Finite
    gap: Finite
    residual: Finite
    angle_deg: Finite
    direction_top: tuple[IndexedValue, ...]


class BeginTokenRecord(Frozen):
    """The begin-of-sequence token beside ordinary ones, each alone at position 0.

    `growth` is `like the others`, or how a norm that it has alone comes about: `abrupt` if one
    layer adds half of it, else `gradual`. `largest_ratio` is its norm over the median of the
    ordinary tokens where that is largest, null if that median is 0 somewhere; `largest_gain` is
    the share of `peak_norm` that one layer adds; `norms` and `ordinary` are its norms and their
    medians after each layer.
    """

    token: int
    growth: Literal["like the others", "abrupt", "gradual"]
    peak_layer: int
    peak_norm: Finite
    largest_ratio: Finite | None
    largest_gain: Finite
    norms: tuple[Finite, ...]
    ordinary: tuple[Finite, ...]


class EmpiricalAngles(Frozen):
    """Acute angles between u1 of every layer and the direction that running text shows.

    `plateau` are the first and last layer after which tokens were seen to share that direction;
    `angles_deg` has one angle for each of the document's layers, `eigenvalues` the eigenpair of R
    nearest that direction (null where none converged; empty in documents before 1.3).
    """

    plateau: tuple[int, int]
    angles_deg: tuple[Finite, ...]
    eigenvalues: tuple[Eigenvalue | None, ...] = ()


class LayersDocument(Document):
    """The result of `layers`. `super_weights` has the strongest entry of each layer, ranked.

    `empirical` has an entry for each plateau of a document `empirical` that was given.

    `accumulated` is empty if it was not asked for.
    """

    schema_version: Literal["1.3"] = "1.3"
    kind: Literal["layers"] = "layers"
    model: ModelRecord
    fit: Literal["canonical", "paper", "sampled"]
    fit_options: FitOptions | None = None
    direction: Direction
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    layers: tuple[LayerEvidence, ...]
    begin_token: BeginTokenRecord | None = None
    super_weights: tuple[SuperWeightRecord, ...]
    accumulated: tuple[AccumulatedRecord, ...] = ()
    empirical: tuple[EmpiricalAngles, ...] = ()
    skipped: tuple[Skipped, ...] = ()
