"""The finished layers of a signing that is under way, kept so that it can go on after a kill.

A file is the SHA-256 of the rest, then a safetensors file of all arrays whose tensor `facts` is the
JSON of everything else. It is replaced as a whole and read only if its digest is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from ckptforensics.arrays import Array, Floats
from ckptforensics.errors import OutputError
from ckptforensics.findings.measure import LayerMeasurement
from ckptforensics.results import write_bytes_atomically

# The file is written no more often than this, and takes no more than this share of the time.
SAVE_EVERY_SECONDS = 5.0
_LARGEST_SHARE = 0.05
_DIGEST_BYTES = 32
_FACTS = "facts"


class JournalFile:
    """A journal of `measure` in a file; a file that cannot be written or read only costs time.

    Experts are left out: a signature does not show them.

    Parameters
    ----------
    path : of the file
    layers : how many there are in all
    tell : told in a sentence where a run goes on
    """

    def __init__(self, path: Path, layers: int, tell: Callable[[str], None]) -> None:
        self.path, self.layers, self.tell = path, layers, tell
        self._unsaved: tuple[list[LayerMeasurement], Floats | None] | None = None
        self._save_at = time.monotonic() + SAVE_EVERY_SECONDS

    def restore(self) -> tuple[list[LayerMeasurement], Floats | None]:
        """See `Journal.restore`; a damaged file counts as none."""
        try:
            measured, x = _decode(self.path.read_bytes())
        except OSError:
            return [], None
        except Exception:  # whatever is wrong with the file, all layers can be measured again
            self.discard()
            return [], None
        self.tell(
            f"resuming after layer {measured[-1].layer}: {len(measured)} of {self.layers} layers "
            "are finished; --no-cache begins again"
        )
        return measured, x

    def save(self, layers: Sequence[LayerMeasurement], x: Floats | None) -> None:
        """See `Journal.save`; written now and then."""
        self._unsaved = ([*layers], x)
        if time.monotonic() >= self._save_at:
            self.flush()

    def flush(self) -> None:
        """Write what `save` was told last, where that is not yet done."""
        if self._unsaved is None:
            return
        begun = time.monotonic()
        data = _encode(*self._unsaved)
        with contextlib.suppress(OutputError):  # the cache tells that it cannot be written
            write_bytes_atomically(self.path, data)
        self._unsaved = None
        now = time.monotonic()
        self._save_at = now + max(SAVE_EVERY_SECONDS, (now - begun) / _LARGEST_SHARE)

    def discard(self) -> None:
        """Remove the file."""
        self._unsaved = None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _encode(layers: Sequence[LayerMeasurement], x: Floats | None) -> bytes:
    from safetensors.numpy import save

    arrays: dict[str, Array] = {}
    facts = {
        "layers": [_pack(replace(layer, experts=()), arrays) for layer in layers],
        "x": _pack(x, arrays),
    }
    arrays[_FACTS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    data = save(arrays)
    return hashlib.sha256(data).digest() + data


def _decode(data: bytes) -> tuple[list[LayerMeasurement], Floats | None]:
    from safetensors.numpy import load

    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        raise ValueError("the file is damaged")
    arrays = load(data[_DIGEST_BYTES:])
    facts = json.loads(arrays[_FACTS].tobytes())
    layers = [_unpack(LayerMeasurement, packed, arrays) for packed in facts["layers"]]
    if not layers:
        raise ValueError("no layer is finished")
    return layers, None if facts["x"] is None else arrays[facts["x"]]


def _pack(value: Any, arrays: dict[str, Array]) -> Any:
    """A value of LayerMeasurement as JSON, in which arrays are named."""
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value)
        return name
    if is_dataclass(value):
        return {f.name: _pack(getattr(value, f.name), arrays) for f in fields(value)}
    return value


def _unpack(kind: Any, packed: Any, arrays: dict[str, Array]) -> Any:
    """The value that `_pack` made this of; `kind` is its type."""
    if packed is None:
        return None
    if isinstance(kind, UnionType):
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{n: _unpack(kinds[n], part, arrays) for n, part in packed.items()})  # type: ignore[operator]
    if get_origin(kind) is np.ndarray:
        return arrays[packed]
    return tuple(packed) if isinstance(packed, list) else packed
