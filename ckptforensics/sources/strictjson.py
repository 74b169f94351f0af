"""JSON objects from untrusted files: duplicate keys, deep nesting and non-objects are errors."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, FormatError
from ckptforensics.sources.pointers import LONGEST_POINTER, refuse_pointer

# A config.json is a few kB and an index of a 400B model a few MB.
_LARGEST_JSON_FILE = 100_000_000


class _DuplicateKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKeyError(f"duplicate key {key!r}")
        result[key] = value
    return result


def parse_json_object(
    text: bytes, *, path: Path, what: str, error: type[CkptError] = FormatError
) -> dict[str, Any]:
    """Parse `text` as one JSON object with unique keys.

    Raises
    ------
    error
        (FormatError by default) if `text` is not such an object; `what` names it in the message.
    """
    refuse_pointer(path, text[:LONGEST_POINTER])
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
        if b"\\u" in text:
            # An escape can spell half a surrogate pair, which no encoding can write again.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _DuplicateKeyError as problem:
        raise error(f"{what} has a {problem}", path=path) from None
    except RecursionError:
        raise error(f"{what} is nested too deeply", path=path) from None
    except UnicodeEncodeError:
        raise error(f"{what} has half a surrogate pair in a string", path=path) from None
    except UnicodeDecodeError as problem:
        raise error(f"{what} is not UTF-8 text", path=path, offset=problem.start) from None
    except json.JSONDecodeError as problem:
        raise error(f"{what} is not valid JSON: {problem}", path=path) from None
    except ValueError:
        raise error(f"{what} has an integer of too many digits", path=path) from None
    if not isinstance(value, dict):
        raise error(f"{what} is not a JSON object", path=path)
    return value


def read_json_object(path: Path, *, what: str) -> dict[str, Any]:
    """Read the file `path` as one JSON object with unique keys.

    Raises
    ------
    FormatError
        if the file is unreadable, too large or not such an object.
    """
    try:
        status = path.stat()
        # Reading a pipe or a device could wait for ever; a directory is told when it is read.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{what} is not a regular file", path=path, hint="give a file")
        if status.st_size > _LARGEST_JSON_FILE:
            raise FormatError(f"{what} is larger than {_LARGEST_JSON_FILE:,} bytes", path=path)
        text = path.read_bytes()
    except OSError as problem:
        raise FormatError(f"cannot read {what}: {problem.strerror}", path=path) from None
    return parse_json_object(text, path=path, what=what)
