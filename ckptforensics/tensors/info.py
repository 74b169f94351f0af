"""What a container's header says of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptforensics.errors import FormatError
from ckptforensics.sources import ContainerName

# What NumPy can hold: it counts the other axes even where one is empty.
_MOST_DIMENSIONS = 32
_MOST_ELEMENTS = 1 << 60


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as it lies in a file.

    Attributes
    ----------
    name : name in the container
    dtype : element type, in the container's own spelling (`BF16`, `Q4_1`)
    shape : sizes in NumPy order, the last one contiguous
    path : file that holds it
    offset : first byte in the file
    nbytes : stored bytes
    unreadable : why the elements cannot be read although the file is right, None if they can
    oriented : a linear map's (out, in), whatever the layout of the unquantized weight is
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    unreadable: str | None = None
    oriented: bool = False


@dataclass(frozen=True)
class Container:
    """One parsed weight file.

    Attributes
    ----------
    kind : which format
    path : the file
    size : its bytes
    header_sha256 : hex digest of everything that describes the tensor data
    tensors : by name
    metadata : key-value pairs of the header (strings in safetensors and PyTorch, scalars in GGUF)
    stamp : size and time of modification when it was parsed
    """

    kind: ContainerName
    path: Path
    size: int
    header_sha256: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamp", _stamp(self.path))

    def require_unchanged(self) -> None:
        """FormatError if the file was written to since it was parsed."""
        if _stamp(self.path) != self.stamp:
            raise FormatError(
                "the file changed while it was read",
                path=self.path,
                hint="run the command again when nothing writes to it",
            )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None
    return found.st_size, found.st_mtime_ns


def cut_within(info: TensorInfo, end: int) -> FormatError:
    """The error for a file that was whole when it was parsed and now ends within a tensor."""
    return FormatError(
        f"the file ends at byte {end:,}, within the tensor",
        path=info.path,
        tensor=info.name,
        hint="it was cut while it was read: download it again",
    )


def element_count(shape: Sequence[int]) -> int | None:
    """Number of elements of a tensor of this shape, None if no array could have it."""
    if len(shape) > _MOST_DIMENSIONS:
        return None
    counted = 1
    for length in shape:
        counted *= max(length, 1)
        if counted > _MOST_ELEMENTS:
            return None
    return 0 if 0 in shape else counted


def matrix_shape(info: TensorInfo) -> tuple[int, int]:
    """Columns and rows of the tensor with its leading axes flattened."""
    if not info.shape:
        return 1, 1
    rows = 1
    for length in info.shape[:-1]:
        rows *= length
    return info.shape[-1], rows
