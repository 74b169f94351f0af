"""State dicts written by `torch.save`, without torch and without executing a pickle.

Layout: a zip archive whose entries are stored uncompressed under one folder, `data.pkl` with the
state dict and `data/<key>` with the elements of each storage, which are read where they lie.
The archive is read more strictly than zip tools do: whatever two readers could understand in two
ways (duplicate names, overlapping entries, bytes before the archive) is refused.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckptforensics.errors import FormatError, NothingAnalysable
from ckptforensics.sources import size_of_file
from ckptforensics.tensors.containers.torchpickle import unpickle
from ckptforensics.tensors.containers.torchrecords import View
from ckptforensics.tensors.dtypes import SAFETENSORS_BITS
from ckptforensics.tensors.info import Container, TensorInfo, element_count

_LARGEST_PICKLE = 1 << 25
_LARGEST_DIRECTORY = 1 << 24
# Bytes by which files of another kind are told.
_BEGIN = 512
_READ_WHOLE = ("data.pkl", "byteorder")
# Keys under which training scripts keep the state dict of the model.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# The same one level down: Composer's, Megatron's.
_NESTED = (("state", "model"), ("model", "language_model"))
_CONVERT = "load it with torch.load in a sandbox and save its state dict as safetensors"
_DAMAGED = "the file is damaged or truncated: download it again"

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL = struct.Struct("<4s5H3I2H")
# Encrypted, patched, strongly encrypted, with masked local headers.
_UNREADABLE_FLAGS = 0x0001 | 0x0020 | 0x0040 | 0x2000
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


# Makes byte ranges (begin, count) of the file that is read present.
Fetch = Callable[[Iterable[tuple[int, int]]], None]


def _nothing_to_fetch(ranges: Iterable[tuple[int, int]]) -> None:
    """The whole file is present."""


@dataclass(frozen=True)
class _Entry:
    """Bytes of the file that belong to an entry of the archive; `crc` 0 where none was made."""

    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True)
class _Directory:
    """The central directory: where it lies and how many entries it lists."""

    offset: int
    nbytes: int
    entries: int


def read_torch(path: Path, fetch: Fetch = _nothing_to_fetch) -> Container:
    """Parse and check a file that `torch.save` wrote of a state dict.

    Parameters
    ----------
    path : the file
    fetch : makes byte ranges (begin, count) of it present before they are read

    The state dict is the pickled dict itself or what it holds under a key of `_WRAPPERS` or
    `_NESTED`; the metadata tells which, as `state_dict_key`. Values that are not tensors are left
    out. A tensor whose elements do not lie in order (a transposed or expanded view) is listed and
    refused when it is read.

    Raises
    ------
    FormatError
        if the archive is damaged or ambiguous, the pickle is anything but a state dict (the
        message names what it wanted to call, and where), or a tensor lies outside its storage.
    NothingAnalysable
        if the file is of PyTorch's formats before 1.6, or holds no tensors.
    """
    try:
        size = size_of_file(path)
        with path.open("rb") as file:
            ends = _END64.size + _END64_LOCATOR.size + _END.size
            fetch([(0, _BEGIN), (max(0, size - ends), ends)])
            _require_zip(file, path, size)
            directory = _find_directory(file, path, size)
            fetch([(directory.offset, directory.nbytes)])
            entries = _read_entries(file, path, directory, fetch)
            whole = [entries[name] for name in _READ_WHOLE if name in entries]
            fetch([(e.offset, e.nbytes) for e in whole if e.nbytes <= _LARGEST_PICKLE])
            pickle = _content(file, path, entries, "data.pkl", _LARGEST_PICKLE)
            if "byteorder" in entries:
                order = _content(file, path, entries, "byteorder", 16)
                if order != b"little":
                    raise FormatError(
                        f"the byte order is {order!r}: only little-endian files are read",
                        path=path,
                        hint=_CONVERT,
                    )
            digest = hashlib.sha256(pickle)
            file.seek(directory.offset)
            digest.update(file.read(directory.nbytes))
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None

    key, views = _state_dict(unpickle(pickle, path=path, begin=entries["data.pkl"].offset), path)
    tensors = {name: _tensor(name, view, path, entries) for name, view in views.items()}
    metadata = {} if key is None else {"state_dict_key": key}
    return Container("torch", path, size, digest.hexdigest(), tensors, metadata)


def _require_zip(file: BinaryIO, path: Path, size: int) -> None:
    begin = file.read(_BEGIN)
    if begin.startswith(b"PK\x03\x04"):
        return
    if size == 0:
        raise FormatError("the file is empty", path=path, hint="download it again")
    if begin[2:].startswith(_LEGACY_MAGIC) or begin[257:262] == b"ustar":
        raise NothingAnalysable(
            "this is PyTorch's legacy format (before 1.6), which is not read",
            path=path,
            hint=_CONVERT,
        )
    if begin.startswith(b"\x80"):
        raise NothingAnalysable(
            "this is a bare pickle and not a file of torch.save", path=path, hint=_CONVERT
        )
    raise FormatError("this is not a zip file of torch.save", path=path, offset=0)


def _find_directory(file: BinaryIO, path: Path, size: int) -> _Directory:
    """Find the central directory by the records at the very end of the file.

    It must end where these begin, so that offsets in it count from the beginning of the file
    (`zipfile` would also take an archive that something else precedes).
    """

    def record(layout: struct.Struct, end: int) -> tuple[Any, ...]:
        if end < layout.size:
            return (b"",)
        file.seek(end - layout.size)
        return layout.unpack(file.read(layout.size))

    def broken(what: str) -> FormatError:
        return FormatError(what, path=path, hint=_DAMAGED)

    end_record = record(_END, size)
    if end_record[0] != b"PK\x05\x06" or end_record[-1] != 0:
        raise broken("the file does not end with the directory of a zip file")
    _, disk, first_disk, here, count, nbytes, offset, _ = end_record
    end = size - _END.size
    locator = record(_END64_LOCATOR, end)
    if locator[0] == b"PK\x06\x07":
        end -= _END64_LOCATOR.size + _END64.size
        end_record = record(_END64, end + _END64.size)
        if (
            end_record[0] != b"PK\x06\x06"
            or end_record[1] != _END64.size - 12
            or locator[1:] != (0, end, 1)
        ):
            raise broken("the zip64 records at the end of the file contradict each other")
        short = ((disk, 16), (first_disk, 16), (here, 16), (count, 16), (nbytes, 32), (offset, 32))
        for (value, bits), long in zip(short, end_record[4:], strict=True):
            if value not in (long, (1 << bits) - 1):
                raise broken("the zip and zip64 records at the end of the file differ")
        disk, first_disk, here, count, nbytes, offset = end_record[4:]
    if disk != 0 or first_disk != 0 or here != count:
        raise broken("the zip file is one part of several")
    if offset + nbytes != end:
        raise broken("the directory of the zip file is not where its end says")
    if nbytes > _LARGEST_DIRECTORY:
        raise FormatError(f"the directory of the zip file has {nbytes:,} bytes", path=path)
    return _Directory(offset, nbytes, count)


def _read_entries(
    file: BinaryIO, path: Path, directory: _Directory, fetch: Fetch
) -> dict[str, _Entry]:
    """The entries by their names below the common folder."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as problem:
        raise FormatError(
            f"the directory of the zip file is broken: {problem}", path=path, hint=_DAMAGED
        ) from None
    if len(listed) != directory.entries:
        raise FormatError(
            f"the zip file lists {len(listed)} entries and counts {directory.entries}",
            path=path,
            hint=_DAMAGED,
        )
    fetch([(info.header_offset, _header_bytes(info)) for info in listed])
    entries: dict[str, _Entry] = {}
    seen: set[str] = set()
    extents: list[tuple[int, int, str]] = []
    folder = listed[0].filename.partition("/")[0] if listed else ""
    for info in listed:
        name = _checked_name(info, path)
        # PyTorch finds entries without regard to case.
        if name.casefold() in seen:
            raise FormatError(f"the zip file holds {name!r} twice", path=path)
        seen.add(name.casefold())
        if info.header_offset >= directory.offset:
            raise FormatError(
                f"the entry {name!r} of the zip file lies outside it", path=path, hint=_DAMAGED
            )
        entry = _entry(file, path, info)
        extents.append((info.header_offset, entry.offset + entry.nbytes, name))
        parent, _, rest = name.partition("/")
        if parent != folder or not rest:
            raise FormatError(
                f"the zip file holds {name!r} outside its folder {folder!r}", path=path
            )
        entries[rest] = entry
    _check_extents(extents, path, directory.offset)
    if "data.pkl" not in entries:
        raise FormatError(
            "the zip file holds no 'data.pkl'", path=path, hint="it is not a file of torch.save"
        )
    return entries


def _checked_name(info: zipfile.ZipInfo, path: Path) -> str:
    name = info.orig_filename
    if (
        name != info.filename
        or any(c in name for c in "\\:\0")
        or any(part in ("", ".", "..") for part in name.split("/"))
    ):
        raise FormatError(
            f"the zip file holds an entry named {name!r}",
            path=path,
            offset=info.header_offset,
            hint="do not trust this file",
        )
    return name


def _header_bytes(info: zipfile.ZipInfo) -> int:
    """Bytes of an entry's local header that `_entry` reads."""
    return _LOCAL.size + len(info.orig_filename.encode("utf-8"))


def _entry(file: BinaryIO, path: Path, info: zipfile.ZipInfo) -> _Entry:
    """Where the bytes of an entry lie: behind its local header, whose length is not listed."""

    def broken(what: str) -> FormatError:
        return FormatError(
            f"the entry {info.filename!r} of the zip file {what}",
            path=path,
            offset=info.header_offset,
        )

    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise broken("is compressed, which torch.save never does")
    if info.flag_bits & _UNREADABLE_FLAGS:
        raise broken("is encrypted")
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise broken("has no header of its own")
    _, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    name = file.read(name_bytes).decode(encoding, errors="replace")
    if name != info.orig_filename or method != zipfile.ZIP_STORED or flags & _UNREADABLE_FLAGS:
        raise broken("is something else in its own header than in the directory")
    offset = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
    return _Entry(offset, info.file_size, info.CRC)


def _check_extents(extents: list[tuple[int, int, str]], path: Path, directory: int) -> None:
    end = 0
    for begin, stop, name in sorted(extents):
        if begin < end:
            raise FormatError(
                f"the entry {name!r} of the zip file overlaps the one before it",
                path=path,
                offset=begin,
            )
        end = stop
        if end > directory:
            raise FormatError(
                f"the entry {name!r} of the zip file ends at byte {end:,}, behind the entries' end",
                path=path,
                offset=begin,
                hint=_DAMAGED,
            )


def _content(
    file: BinaryIO, path: Path, entries: Mapping[str, _Entry], name: str, most: int
) -> bytes:
    entry = entries[name]
    if entry.nbytes > most:
        raise FormatError(
            f"the entry {name!r} has {entry.nbytes:,} bytes; at most {most:,} are read",
            path=path,
            offset=entry.offset,
        )
    file.seek(entry.offset)
    content = file.read(entry.nbytes)
    # `torch.serialization.set_crc32_options(False)` writes zeros.
    if entry.crc and zlib.crc32(content) != entry.crc:
        raise FormatError(
            f"the entry {name!r} does not have its checksum",
            path=path,
            offset=entry.offset,
            hint=_DAMAGED,
        )
    return content


def _state_dict(value: Any, path: Path) -> tuple[str | None, dict[str, View]]:
    """The tensors by name, and the key under which they were, None for the top."""
    if not isinstance(value, dict):
        raise NothingAnalysable(
            f"the file holds a {type(value).__name__} where a state dict belongs",
            path=path,
            hint="save model.state_dict()",
        )
    found = {key: views for key in _WRAPPERS if (views := _views(value.get(key)))}
    for outer, key in _NESTED:
        inner = value.get(outer)
        if isinstance(inner, dict) and (views := _views(inner.get(key))):
            found[f"{outer}.{key}"] = views
    if len(found) > 1:
        raise NothingAnalysable(
            f"the file holds several state dicts: {', '.join(map(repr, found))}",
            path=path,
            hint="save the one to analyse alone",
        )
    if found:
        return next(iter(found.items()))
    views = _views(value)
    if not views:
        raise NothingAnalysable(
            "the file holds no state dict", path=path, hint="save model.state_dict()"
        )
    return None, views


def _views(value: Any) -> dict[str, View]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if type(k) is str and isinstance(v, View)}


def _tensor(name: str, view: View, path: Path, entries: Mapping[str, _Entry]) -> TensorInfo:
    def broken(what: str) -> FormatError:
        return FormatError(what, path=path, tensor=name)

    storage = view.storage
    entry = entries.get(f"data/{storage.key}")
    if entry is None:
        raise broken(f"the storage {storage.key!r} is missing from the file")
    if entry.nbytes != storage.nbytes:
        raise broken(
            f"the storage {storage.key!r} has {entry.nbytes:,} bytes where the pickle promises "
            f"{storage.nbytes:,}"
        )
    elements = element_count(view.shape)
    if elements is None:
        raise broken(f"the shape {view.shape} is too large")
    width = view.element.nbytes
    if elements == 0:
        return TensorInfo(name, view.element.name, view.shape, path, entry.offset, 0)
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.stride, strict=True))
    if (last + 1) * width > entry.nbytes:
        raise broken(
            f"offset {view.offset}, shape {view.shape} and stride {view.stride} reach element "
            f"{last:,}, beyond the {entry.nbytes // width:,} of the storage {storage.key!r}"
        )
    return TensorInfo(
        name,
        view.element.name,
        view.shape,
        path,
        entry.offset + view.offset * width,
        elements * width,
        _unreadable(view),
    )


def _unreadable(view: View) -> str | None:
    if view.element.name not in SAFETENSORS_BITS:
        return f"elements of type {view.element.name} cannot be decoded"
    if view.flags:
        return "the tensor is a conjugate or negative view of its storage"
    expected = 1
    for length, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if length != 1 and stride != expected:
            return (
                f"the tensor is stored with shape {view.shape} and stride {view.stride} "
                "(transposed, expanded or cut out of another); save it with .contiguous()"
            )
        expected *= length
    return None
