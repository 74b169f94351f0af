"""Header of a GGUF file: metadata scalars and the table of tensors.

Own parser because streaming needs the place of every tensor without building the tokenizer's
hundred thousand strings, and because every malformed byte must end in one clear error. The
dequantizers are those of the `gguf` package (`dtypes`).
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptforensics.errors import FormatError
from ckptforensics.sources import size_of_file
from ckptforensics.tensors.dtypes import gguf_type
from ckptforensics.tensors.info import Container, TensorInfo, element_count

_SCALARS = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
_STRING, _ARRAY = 8, 9
_WHOLE_NUMBERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
_SHORT_ARRAY = 4096
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, known by its element type, length and place only.

    Attributes
    ----------
    numbers : the elements of a short array of whole numbers, such as one for each layer
    """

    element_type: int
    length: int
    offset: int
    numbers: tuple[int, ...] = ()


def read_gguf(path: Path) -> Container:
    """Parse and check the header of a GGUF file of version 2 or 3.

    Raises
    ------
    FormatError
        if the file breaks the format or is truncated.
    MissingDependency
        if it holds quantized tensors and the `gguf` package is not installed.
    """
    try:
        size = size_of_file(path)
        if size < 24:
            raise FormatError(
                "the file is empty" if size == 0 else "the file is too short for a GGUF header",
                path=path,
                hint="download it again",
            )
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data, path), size)
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None


def read_strings(path: Path, array: GgufArray) -> list[bytes]:
    """The strings of an array of the metadata, as they are stored.

    Raises
    ------
    FormatError
        if the file cannot be read, the array holds something else, or the file has changed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path)
            cursor.at = array.offset
            if array.element_type != _STRING:
                raise cursor.broken("an array of strings was expected")
            found = []
            for _ in range(array.length):
                length = cursor.scalar("Q")
                begin = cursor.skip(length)
                found.append(data[begin : begin + length])
            return found
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None


def require_whole_split(shards: Sequence[Container]) -> None:
    """Check that files in the order of their names are all shards of one model, and in order.

    Raises
    ------
    FormatError
        if what the files say of the split contradicts their number, their order or their tensors.
    """
    whole = "give all shards of one model under the names they were made with"
    for number, shard in enumerate(shards):
        count = shard.metadata.get("split.count", 0 if len(shards) > 1 else 1)
        # 0 is what llama.cpp writes to say that the file is not split.
        if count != len(shards) and not (count == 0 and len(shards) == 1):
            says = f"one of {count} shards" if count else "not a shard"
            raise FormatError(
                f"the file says that it is {says}, and there are {len(shards)}",
                path=shard.path,
                hint=whole,
            )
        said = shard.metadata.get("split.no", None if len(shards) > 1 else 0)
        if said != number:
            raise FormatError(
                f"the file says that it is shard {said} (from 0), its name says {number}",
                path=shard.path,
                hint=whole,
            )
    tensors = sum(len(shard.tensors) for shard in shards)
    for shard in shards:
        promised = shard.metadata.get("split.tensors.count", tensors)
        if promised != tensors:
            raise FormatError(
                f"the file says that the shards hold {promised} tensors, and they hold {tensors}",
                path=shard.path,
                hint="download the shards again",
            )


class _Cursor:
    """Reads the header front to back; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def broken(self, what: str, **where: Any) -> FormatError:
        return FormatError(what, path=self.path, **{"offset": self.at, **where})

    def skip(self, count: int) -> int:
        """Move over `count` bytes and return where they begin."""
        begin = self.at
        if count > len(self.data) - begin:
            raise self.broken(
                "the header runs past the end of the file", hint="the file is truncated"
            )
        self.at = begin + count
        return begin

    def scalar(self, code: str) -> Any:
        begin = self.skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.data, begin)[0]

    def skip_strings(self, count: int) -> None:
        """Move over `count` strings; a tokenizer has a hundred thousand, hence the tight loop."""
        length_at = struct.Struct("<Q").unpack_from
        at, last = self.at, len(self.data) - 8
        for _ in range(count):
            if at > last:
                break
            at += 8 + length_at(self.data, at)[0]
        else:
            last = len(self.data)
        self.skip(at - self.at if at <= last else len(self.data))

    def string(self, most: int | None = None) -> str:
        length = self.scalar("Q")
        if most is not None and length > most:
            raise self.broken(f"a name of {length:,} bytes")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken("a string is not UTF-8", offset=begin) from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise self.broken(f"unknown metadata type {kind}")

    def array(self) -> GgufArray:
        kind, length, begin = self.scalar("I"), self.scalar("Q"), self.at
        numbers: tuple[int, ...] = ()
        if kind in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[kind]))
            if kind in _WHOLE_NUMBERS and length <= _SHORT_ARRAY:
                numbers = struct.unpack_from(f"<{length}{_SCALARS[kind]}", self.data, begin)
        elif kind == _STRING:
            self.skip_strings(length)
        else:
            raise self.broken(f"unknown or nested array type {kind}")
        return GgufArray(kind, length, begin, numbers)


def _parse(cursor: _Cursor, size: int) -> Container:
    if cursor.data[:4] != b"GGUF":
        raise cursor.broken("the file does not begin with 'GGUF'", hint="this is not a GGUF file")
    cursor.skip(4)
    _check_version(cursor)
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.broken(f"duplicate metadata key {key!r}")
        metadata[key] = cursor.value(cursor.scalar("I"))

    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.broken(f"alignment {alignment!r} is not a power of two")
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = cursor.string(_LONGEST_NAME)
        if name in entries:
            raise cursor.broken("duplicate tensor", tensor=name)
        entries[name] = _entry(cursor, name, alignment)
    begin = -(-cursor.at // alignment) * alignment
    digest = hashlib.sha256(cursor.data[: min(begin, size)]).hexdigest()
    tensors = {
        name: TensorInfo(name, dtype, shape, cursor.path, begin + offset, nbytes)
        for name, (dtype, shape, offset, nbytes) in entries.items()
    }
    _check_extents(tensors, size)
    return Container("gguf", cursor.path, size, digest, tensors, metadata)


def _check_version(cursor: _Cursor) -> None:
    version = cursor.scalar("I")
    if version in (2, 3):
        return
    # Of a big-endian file the version is the first number in the other order.
    if int.from_bytes(version.to_bytes(4, "little"), "big") < 256:
        raise cursor.broken(
            "the file is big-endian, which is not supported",
            offset=4,
            hint="'gguf-convert-endian FILE little' of the gguf package converts it in place",
        )
    raise cursor.broken(
        f"GGUF version {version} is not supported (2 and 3 are)",
        offset=4,
        hint="convert the model again with a newer llama.cpp" if version == 1 else None,
    )


def _entry(cursor: _Cursor, name: str, alignment: int) -> tuple[str, tuple[int, ...], int, int]:
    """Element type, shape, offset in the buffer and stored bytes of the next tensor."""
    dimensions = cursor.scalar("I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.broken(f"{dimensions} dimensions", tensor=name)
    # GGUF writes the contiguous size first, NumPy last.
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    kind = gguf_type(cursor.scalar("I"), path=cursor.path, tensor=name)
    offset = cursor.scalar("Q")
    if offset % alignment:
        raise cursor.broken(f"offset {offset} is not a multiple of {alignment}", tensor=name)
    elements = element_count(shape)
    if elements is None:
        raise cursor.broken(f"the shape {shape} is too large", tensor=name)
    row = shape[-1] if shape else 1
    if elements and row % kind.block_elements:
        raise cursor.broken(
            f"rows of {row} elements do not divide into {kind.name} blocks", tensor=name
        )
    nbytes = elements // kind.block_elements * kind.block_bytes
    return kind.name, shape, offset, nbytes


def _check_extents(tensors: Mapping[str, TensorInfo], size: int) -> None:
    end = 0
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if info.offset < end:
            raise FormatError(
                "the tensor overlaps the one before it",
                path=info.path,
                tensor=info.name,
                offset=info.offset,
            )
        end = info.offset + info.nbytes
        if end > size:
            raise FormatError(
                f"the tensor ends at byte {end:,} and the file has {size:,}",
                path=info.path,
                tensor=info.name,
                offset=info.offset,
                hint="the file is truncated: download it again",
            )
