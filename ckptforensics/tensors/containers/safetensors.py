"""Header of a safetensors file, checked against every rule of the format.

Layout: a little-endian u64 header length, that many bytes of JSON (space-padded at will), then
one buffer whose bytes belong to exactly one tensor each. Own parser because the reference
implementation accepts duplicate keys, cannot hand out BF16 or FP8 rows to NumPy and hides where
the bytes lie, which streaming needs.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ckptforensics.errors import FormatError
from ckptforensics.sources import parse_json_object, size_of_file
from ckptforensics.tensors.dtypes import SAFETENSORS_BITS
from ckptforensics.tensors.info import Container, TensorInfo, element_count

# Limit of the reference implementation.
LARGEST_HEADER = 100_000_000
# Largest models have a few hundred thousand; a million empty ones would take a minute to read.
MOST_TENSORS = 500_000


def read_safetensors(path: Path) -> Container:
    """Parse and check the header of a safetensors file.

    Raises
    ------
    FormatError
        if the file breaks the format: truncated, a header longer than the file or over 100 MB,
        duplicate keys, unknown element types, tensors that overlap, leave holes or lie outside.
    """
    try:
        size = size_of_file(path)
        with path.open("rb") as file:
            length_bytes = file.read(8)
            if len(length_bytes) < 8:
                raise FormatError(
                    "the file is empty" if size == 0 else "the file is too short for a header",
                    path=path,
                    hint="download it again",
                )
            (length,) = struct.unpack("<Q", length_bytes)
            if length > LARGEST_HEADER:
                raise FormatError(
                    f"the header claims {length:,} bytes, more than the format's 100 MB",
                    path=path,
                    offset=0,
                    hint="this is not a safetensors file",
                )
            if 8 + length > size:
                raise FormatError(
                    f"the header claims {length:,} bytes and the file has {size:,}",
                    path=path,
                    offset=0,
                    hint="the file is truncated or not safetensors: download it again",
                )
            header_bytes = file.read(length)
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None

    listed = header_bytes.count(b'"data_offsets"')
    if listed > MOST_TENSORS:
        raise FormatError(
            f"the header lists {listed:,} tensors, more than the {MOST_TENSORS:,} of any model",
            path=path,
            hint="do not trust this checkpoint",
        )
    header = parse_json_object(header_bytes, path=path, what="the header")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # the reference library reads null, too
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("'__metadata__' is not a map of strings", path=path)
    buffer = 8 + length
    tensors = {name: _tensor(name, entry, path, buffer) for name, entry in header.items()}
    _check_extents(tensors, path, buffer, size)
    digest = hashlib.sha256(length_bytes + header_bytes).hexdigest()
    return Container("safetensors", path, size, digest, tensors, metadata)


def _tensor(name: str, entry: Any, path: Path, buffer: int) -> TensorInfo:
    def broken(what: str) -> FormatError:
        return FormatError(what, path=path, tensor=name)

    # The reference library reads over other keys.
    if not isinstance(entry, dict) or not set(entry) >= {"dtype", "shape", "data_offsets"}:
        raise broken("the header entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        raise broken(f"unknown element type {short(dtype)}")
    if not _naturals(shape):
        raise broken(f"the shape {short(shape)} is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"data_offsets {short(offsets)} are not a begin and an end")
    elements = element_count(shape)
    if elements is None:
        raise broken(f"the shape {short(shape)} is too large")
    bits = elements * SAFETENSORS_BITS[dtype]
    nbytes = offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise broken(f"{nbytes:,} bytes stored where {dtype} of shape {shape} needs {bits // 8:,}")
    return TensorInfo(name, dtype, tuple(shape), path, buffer + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_extents(tensors: dict[str, TensorInfo], path: Path, buffer: int, size: int) -> None:
    """Every byte of the buffer belongs to exactly one tensor."""
    end = buffer
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if info.offset != end:
            what = "overlaps the tensor before it" if info.offset < end else "leaves a hole before"
            raise FormatError(f"the tensor {what}", path=path, tensor=info.name, offset=info.offset)
        end = info.offset + info.nbytes
    if end > size:
        raise FormatError(
            f"the header describes {end:,} bytes and the file has {size:,}",
            path=path,
            hint="the file is truncated: download it again",
        )
    if end < size:
        raise FormatError(
            f"{size - end:,} bytes at the end belong to no tensor", path=path, offset=end
        )
