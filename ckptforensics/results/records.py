"""What all documents share: their base, and the records that several kinds hold.

Documents are frozen, and unknown keys are errors. docs/json.md explains every field, docs/schemas/
holds the JSON Schemas made from these classes. Layers count from 1; coordinates, hidden units and
tokens from 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


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


class DamageRecord(Frozen):
    """Something in a tensor that training does not leave.

    `what` is `zeros` (a stretch of zeros), `constant` (a matrix of one value), `repeated` (rows
    that equal others exactly), `not-finite` (NaN or infinite) or `identity` (layer `layer`, of
    prefix `tensor`, adds nothing: output and down are zero). `rows` are the first and last row,
    from 0, of the longest stretch or of what is not finite, or the first two rows that are equal;
    `bytes` its range in `file`; `count` the number of stretches, of rows that repeat others, or of
    elements (in GGUF's blocks, of blocks). A `note` may well have a harmless reason.
    """

    tensor: Name
    file: Name
    what: Literal["zeros", "constant", "repeated", "identity", "not-finite"]
    layer: int | None = None
    rows: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    count: int = 1
    level: Literal["finding", "note"] = "finding"


class Examined(Frozen):
    """How many weights were looked at for damage: whole, a few pages of them, or not."""

    whole: int
    sampled: int
    not_read: int


class ModelRecord(Frozen):
    """What was analysed.

    `commit` is that of a repository on the Hub; `notes` says what was
    assumed because the checkpoint does not say it; `base` is what the adapter at `path` was merged
    onto, null where there is no adapter; `damage` is what looks damaged among what `examined`
    counts, null where nothing was looked at.
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
    damage: tuple[DamageRecord, ...] = ()
    examined: Examined | None = None


class Skipped(Frozen):
    """Something that was not analysed, and why."""

    what: str
    reason: str


def rollout_incomplete(skipped: tuple[Skipped, ...]) -> bool:
    """Whether no token was followed through every layer: 'none found' then says little."""
    return any(row.what == "single-token rollout" for row in skipped)


class FitOptions(Frozen):
    """Options of the sampled fit; `calibration_sha256` is that of the supplied vectors' file."""

    samples: int | None = None
    seed: int | None = None
    calibration_sha256: Sha256 | None = None


class Direction(Frozen):
    """The direction that high-norm tokens share.

    `source` is `rollout` if it was read off single tokens at `layer`, where their norm peaks, or
    `spectrum` if it is the direction most layers' u1 share and no token was seen to follow it, or
    `none`, with an empty `top`, if no layer adds anything.
    `concentration` is the length of the mean of the unit vectors (rollout), or the share of the
    squared weight (spectrum): 1 means that all agree.
    """

    source: Literal["rollout", "spectrum", "none"]
    layer: int | None
    concentration: Finite
    top: tuple[IndexedValue, ...]


class Document(Frozen):
    """Base of all documents: which kind it is, and of which version its keys are.

    Every kind has its own `schema_version`, MAJOR.MINOR, as `results.versions` reads it.
    """

    schema_version: str
    tool_version: str
    kind: str

    @classmethod
    def current_version(cls) -> str:
        """The schema version that this kind of document is written with."""
        return str(cls.model_fields["schema_version"].default)
