"""What was read of one model: the record that the catalog keeps, and rules are applied to."""

from __future__ import annotations

from typing import Literal

from ckptforensics.registry.found import Found, Problem
from ckptforensics.results.audit import AuditedLayer, FileRole
from ckptforensics.results.records import DamageRecord, Frozen, Name, Sha256

# Where reading a model stopped, or what it stumbled over. Those of `found.ProblemKind`, and:
ReadingProblem = Literal[
    "card",  # a card that cannot be read as one
    "pickle",  # a pickle that names what is refused
    "pickle-classes",  # a pickle beside the weights that holds a program's own objects
    "container",  # weights that break their format
    "family",  # no family that is known
    "values",  # weights that cannot be analysed: missing tensors, not finite
    "limits",  # memory or time ran out
    "dependency",  # a package is not installed
    "base",  # an adapter whose base is not at hand
    "several",  # several models in one place
    "copy",  # other weights beside those that are read
    "text",  # a configuration or tokenizer that cannot be read as one
    "crash",  # the process ended without an answer
]


class Claim(Frozen):
    """A parent that a file names; `relation` as it is claimed, `line` from 1 where it has lines."""

    parent: Name
    relation: Name | None
    source: Name
    line: int | None = None


class Licence(Frozen):
    """A licence as a file names it."""

    id: Name
    file: Name
    line: int | None = None


class ReadFile(Frozen):
    """A file as it was found: `matches` says whether its content is what the store states."""

    name: Name
    role: FileRole
    bytes: int
    changed: str
    stated: str | None = None
    sha256: Sha256 | None = None
    matches: bool | None = None


def unread_files(found: Found) -> tuple[ReadFile, ...]:
    """The files of a model of which nothing was computed yet."""
    return tuple(
        ReadFile(name=f.name, role=f.role, bytes=f.bytes, changed=f.changed, stated=f.stated)
        for f in found.files
    )


class Tokenizer(Frozen):
    """A vocabulary: digest of all (token, id), its size, and ids of tokens sampled by a hash."""

    file: Name
    sha256: Sha256
    size: int
    sample: dict[str, int]


class Template(Frozen):
    """A chat template: its digest, and what in it reaches for more than the conversation."""

    file: Name
    sha256: Sha256
    code: tuple[str, ...] = ()
    line: int | None = None


class RemoteCode(Frozen):
    """A file that asks a loader to import the repository's own code."""

    file: Name
    names: tuple[Name, ...]
    line: int | None = None


class Stumble(Frozen):
    """What could not be read of a model, and why; `kind` is of ReadingProblem or ProblemKind."""

    kind: str
    file: Name
    message: str
    line: int | None = None
    tensor: Name | None = None

    @classmethod
    def of(cls, problem: Problem) -> Stumble:
        """A problem of the listing."""
        return cls(kind=problem.kind, file=problem.file, message=problem.message)


class ModelFacts(Frozen):
    """What the headers say: family, sizes and how the weights are stored.

    `types` are element types to the number of elements stored so, `container` that of the files.
    """

    family: str
    family_source: Literal["config", "gguf", "inferred"]
    hidden_size: int
    num_layers: int
    parameters: int
    container: str
    types: dict[str, int]
    notes: tuple[str, ...] = ()


class SignatureFacts(Frozen):
    """The model's signature: the digest of its file in the catalog, and what reports show."""

    sha256: Sha256
    fingerprint: str | None
    layers: tuple[AuditedLayer, ...]


class Reading(Frozen):
    """All that was read of a model.

    `weights` is the digest of the weight files together, null where one was not read; `seconds` is
    what reading took.
    """

    files: tuple[ReadFile, ...] = ()
    claims: tuple[Claim, ...] = ()
    licence: Licence | None = None
    tokenizer: Tokenizer | None = None
    templates: tuple[Template, ...] = ()
    remote_code: tuple[RemoteCode, ...] = ()
    facts: ModelFacts | None = None
    signature: SignatureFacts | None = None
    damage: tuple[DamageRecord, ...] = ()
    stumbles: tuple[Stumble, ...] = ()
    weights: Sha256 | None = None
