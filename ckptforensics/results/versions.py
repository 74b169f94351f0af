"""Documents of other versions: which are read, and what to do about the others.

A kind's minor version rises when keys are added, each with a default; its major version when a key
goes or its meaning changes. So a document of an older minor version is read whole, and becomes one
of the current version; of a newer minor version what is known here is read; of another major
version nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckptforensics.errors import ResultError
from ckptforensics.results.kinds import DOCUMENTS
from ckptforensics.results.records import Document

_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
_UPGRADE = "upgrade ckptforensics to read it"
_AGAIN = "make it again with this version of ckptforensics"

# A key that other JSON files beside a model have, and what the file is then.
_OF_MODELS = {
    "model_type": "the configuration",
    "architectures": "the configuration",
    "weight_map": "the index of the shards",
    "tokenizer_class": "the configuration of the tokenizer",
    "added_tokens": "the tokenizer",
}


def read_document(fields: dict[str, Any], file: Path) -> Document:
    """The document that a file's JSON object holds.

    Parameters
    ----------
    fields : the object, which this function may change
    file : where it comes from, for errors

    Raises
    ------
    ResultError
        if it is no document, does not fit the schema of its kind, or is of another major version.
    """
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in DOCUMENTS:
        for key, what in _OF_MODELS.items():
            if kind is None and key in fields:
                raise ResultError(
                    f"not a saved result: the file is {what} of a model",
                    path=file,
                    hint="give a file written with -o; 'ckpt sign' and the others read the model",
                )
        raise ResultError(
            f"not a saved result: its kind is {kind!r}",
            path=file,
            hint=f"give a file written with -o, or if it is one, {_UPGRADE}",
        )
    known = DOCUMENTS[kind]
    ours, theirs = _parts(known.current_version()), _parts(fields.get("schema_version"))
    assert ours is not None
    if theirs is None:  # the schema says what is wrong with it
        return _validated(known, fields, file, _AGAIN)
    if theirs[0] != ours[0]:
        newer = theirs[0] > ours[0]
        raise ResultError(
            f"the saved {kind} document has schema version {fields['schema_version']}, "
            f"and this version of ckptforensics reads {ours[0]}.x",
            path=file,
            hint=_UPGRADE if newer else _AGAIN,
        )
    for key, value in fields.items():
        if isinstance(value, dict) and value.get("kind") in DOCUMENTS:  # of a version of its own
            fields[key] = read_document(value, file)
    if theirs > ours:
        _drop_unknown(known, fields)
    fields["schema_version"] = known.current_version()
    return _validated(known, fields, file, _UPGRADE if theirs > ours else _AGAIN)


def _parts(version: object) -> tuple[int, int] | None:
    """Major and minor; None for what is no version."""
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def _drop_unknown(known: type[Document], fields: dict[str, Any]) -> None:
    """Remove the keys, at every level, that this version does not know."""
    try:
        known.model_validate(fields | {"schema_version": known.current_version()})
    except ValidationError as problem:
        for error in problem.errors():
            if error["type"] == "extra_forbidden":
                *way, key = error["loc"]
                place: Any = fields
                for step in way:
                    place = place[step]
                del place[key]


def _validated(known: type[Document], fields: dict[str, Any], file: Path, hint: str) -> Document:
    try:
        return known.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ResultError(
            f"the saved result does not fit its schema at '{place}': {first['msg']}",
            path=file,
            hint=hint,
        ) from None
