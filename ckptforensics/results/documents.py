"""The documents as frozen, versioned models; unknown keys are errors.

docs/json.md explains every field, docs/schemas/ holds the JSON Schemas made from these classes.
Layers count from 1; coordinates, hidden units and tokens from 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _unicode(name: object) -> object:
    """Bytes of a file name that are not UTF-8, which Python keeps as surrogates, as escapes."""
    return name.encode("utf-8", "backslashreplace").decode() if isinstance(name, str) else name


Finite = Annotated[float, Field(allow_inf_nan=False)]
# A file name need not be Unicode; a document is.
Name = Annotated[str, BeforeValidator(_unicode)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
IndexedValue = tuple[int, Finite]


class Frozen(BaseModel):
    """A record that cannot be changed, and whose unknown keys are errors."""

    # Validators are built when a document is first used: a command uses one kind of them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FileRecord(Frozen):
    """One weight file: its size and digests (`sha256` of the whole file only where known)."""

    name: Name
    bytes: int
    header_sha256: Sha256
    sha256: Sha256 | None


class ModelRecord(Frozen):
    """What was analysed.

    `commit` is that of a repository on the Hub; `notes` says what was
    assumed because the checkpoint does not say it; `base` is what the adapter at `path` was merged
    onto, null where there is no adapter.
    """

    path: Name
    family: str
    family_source: Literal["config", "gguf", "inferred"]
    hidden_size: int
    num_layers: int
    files: tuple[FileRecord, ...]
    commit: str | None = None
    notes: tuple[str, ...] = ()
    base: Name | None = None


class Skipped(Frozen):
    """Something that was not analysed, and why."""

    what: str
    reason: str


class FitOptions(Frozen):
    """Options of the sampled fit; `calibration_sha256` is that of the supplied vectors' file."""

    samples: int | None = None
    seed: int | None = None
    calibration_sha256: Sha256 | None = None


class Direction(Frozen):
    """The direction that high-norm tokens share.

    `source` is `rollout` if it was read off single tokens at `layer`, where their norm peaks, or
    `spectrum` if it is the direction most layers' u1 share and no token was seen to follow it.
    `concentration` is the length of the mean of the unit vectors (rollout), or the share of the
    squared weight (spectrum): 1 means that all agree.
    """

    source: Literal["rollout", "spectrum"]
    layer: int | None
    concentration: Finite
    top: tuple[IndexedValue, ...]


class Document(Frozen):
    """Base of all documents."""

    schema_version: Literal["1.0"] = "1.0"
    tool_version: str


class LayerSignature(Frozen):
    """Leading singular values of L, the gap between them, and the top of u1.

    `residual` is |L'u1 - s1 v1| / s1 as measured; `direction_top` lists the largest components.
    """

    layer: int
    prefix: str
    sigma: tuple[Finite, Finite]
    gap: Finite
    residual: Finite
    direction_top: tuple[IndexedValue, ...]


class SignatureDocument(Document):
    """The result of `sign`."""

    kind: Literal["signature"] = "signature"
    fingerprint: str | None
    model: ModelRecord
    fit: Literal["canonical", "paper", "sampled"]
    fit_options: FitOptions | None = None
    layers: tuple[LayerSignature, ...]
    direction: Direction
    explosion: tuple[int, ...]
    decay: tuple[int, ...]
    skipped: tuple[Skipped, ...] = ()


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
    """The eigenpair of R nearest the probed direction, and |R q - lambda q| / |lambda|."""

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
    ordinary tokens where that is largest, `largest_gain` the share of `peak_norm` that one layer
    adds; `norms` and `ordinary` are its norms and their medians after each layer.
    """

    token: int
    growth: Literal["like the others", "abrupt", "gradual"]
    peak_layer: int
    peak_norm: Finite
    largest_ratio: Finite
    largest_gain: Finite
    norms: tuple[Finite, ...]
    ordinary: tuple[Finite, ...]


class LayersDocument(Document):
    """The result of `layers`. `super_weights` has the strongest entry of each layer, ranked.

    `accumulated` is empty if it was not asked for.
    """

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
    skipped: tuple[Skipped, ...] = ()


class NormsDocument(Document):
    """The result of `norms`: residual-stream norms of single tokens after each layer.

    `tokens` are ids, null for a random embedding; `embedding_norms` are the norms before layer 1;
    `median` is taken over the tokens, layer by layer.
    """

    kind: Literal["norms"] = "norms"
    model: ModelRecord
    attention: bool
    tokens: tuple[int | None, ...]
    embedding_norms: tuple[Finite, ...]
    norms: tuple[tuple[Finite, ...], ...]
    median: tuple[Finite, ...]
    skipped: tuple[Skipped, ...] = ()

    @model_validator(mode="after")
    def _one_table(self) -> NormsDocument:
        count = len(self.tokens)
        if not count or len(self.norms) != count or len(self.embedding_norms) != count:
            raise ValueError("tokens, norms and embedding_norms must have one entry a token")
        if any(len(row) != len(self.median) for row in self.norms):
            raise ValueError("norms and median must have one entry a layer")
        return self


class TensorRecord(Frozen):
    """One tensor: its role, or the reason why it is not read.

    A quantized weight is one record of its logical shape, whose bytes are those of its parts; each
    stored part is another, `part_of` the weight, with the weight's role or reason.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Name
    role: str | None
    skipped: str | None
    part_of: str | None = None


class InspectDocument(Document):
    """The result of `inspect`; of heads there are none, and no FFN width, if none are analysed."""

    kind: Literal["inspect"] = "inspect"
    model: ModelRecord
    description: str
    residual: Literal["sequential", "parallel"]
    norm: Literal["rms", "layer"]
    epsilon: Finite
    activation: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int | None
    num_experts: int | None
    vocabulary_size: int | None
    bos_token_id: int | None
    parameters: int
    parameters_used: int
    tensors: tuple[TensorRecord, ...]
    skipped: tuple[Skipped, ...] = ()


class FamilyRecord(Frozen):
    """A supported family; `verified_by` names the test cases, empty means not verified."""

    name: str
    description: str
    model_types: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    verified_by: tuple[str, ...]


class FamiliesDocument(Document):
    """The result of `families`; `oracle` is the implementation the test cases compared with."""

    kind: Literal["families"] = "families"
    oracle: str
    families: tuple[FamilyRecord, ...]


class CacheDocument(Document):
    """The result of `cache`: the signatures kept at `path`, null where nothing is kept.

    `unfinished` counts interrupted runs that can go on; `bytes` is what all files take.
    """

    kind: Literal["cache"] = "cache"
    path: Name | None
    entries: int
    unfinished: int
    bytes: int
    most_entries: int
    most_bytes: int
