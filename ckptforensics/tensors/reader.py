"""What can be read of a checkpoint's tensors, whatever lies between the files and the numbers.

A reader of files reads them as they are stored; others hold a reader and show its tensors
dequantized or with an adapter's changes in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import NotFinite, TensorError
from ckptforensics.tensors.info import Container, TensorInfo, matrix_shape

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes, Floats
    from ckptforensics.compute.bf16 import Bf16Matrix
    from ckptforensics.tensors.damage import Watch

# Elements decoded at once: a block and its temporaries stay in the processor's cache until it is
# checked (docs/performance.md).
BLOCK_ELEMENTS = 1 << 17


class TensorReader(ABC):
    """Read access to tensors as float32.

    Attributes
    ----------
    containers : the parsed files
    tensors : header entry of each tensor by name
    metadata : header metadata of the first file
    aside : stored tensor that is not among `tensors` to the reason why it is not read
    watch : what looks for damage in the bytes of the files below, None where nothing does
    """

    containers: tuple[Container, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any]
    aside: Mapping[str, str] = MappingProxyType({})
    watch: Watch | None = None

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """Header entry of a tensor; TensorError if there is none."""
        try:
            return self.tensors[name]
        except KeyError:
            path = self.containers[0].path if len(self.containers) == 1 else None
            raise TensorError("the tensor is missing", path=path, tensor=name) from None

    def read(self, name: str) -> Floats:
        """The whole tensor in its own shape."""
        info = self.info(name)
        _, rows = matrix_shape(info)
        return self.read_rows(name, 0, rows).reshape(info.shape)

    @abstractmethod
    def recipe(self) -> str:
        """All that decides the values of the tensors beside the files' own bytes."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows `start` to `stop` of the tensor seen as a matrix, leading axes flattened.

        Returns
        -------
        (stop - start, columns) float32, the caller's own

        Raises
        ------
        TensorError
            if the tensor is missing, or its elements cannot be decoded or do not lie in order.
        NotFinite
            if an element is NaN or infinite; the message names its row and column.
        """

    @abstractmethod
    def kept_rows(self, name: str, start: int, stop: int) -> Bf16Matrix | None:
        """Rows as `read_rows` counts them, left in the file in BF16.

        None where that cannot be: another element type, a row of an odd number of elements, no
        numba. The file's pages are given back when the last view of the matrix is gone.

        Raises
        ------
        NotFinite
            as `read_rows`.
        """

    @abstractmethod
    def prefetch(self, names: Iterable[str], *, keep: bool = False) -> None:
        """Fetch whole tensors of remote files together, or read local ones ahead.

        Reading ahead only fills the operating system's cache, in a file's order, and keeps nothing
        but with `keep`.

        Parameters
        ----------
        keep : the tensors are read once, by `kept_rows` or whole: those of a large model may be
            read past the cache, into memory that is held until the next call
        """

    @abstractmethod
    def prefetch_rows(self, name: str, rows: Iterable[tuple[int, int]]) -> None:
        """Fetch row ranges (start, stop) of one tensor of a remote file together."""

    @abstractmethod
    def parts(self, name: str) -> tuple[TensorInfo, ...]:
        """The stored tensors that `read` takes the tensor from: itself, or the parts it has."""

    @abstractmethod
    def stored_bytes(self, name: str) -> Bytes:
        """All bytes of a stored tensor, not decoded: a view of the file, see `release`.

        Parameters
        ----------
        name : of a tensor as it is stored, such as one of `parts`
        """

    @abstractmethod
    def release(self, name: str) -> None:
        """Give the memory of a stored tensor's bytes back; views of them stay valid."""


def require_finite(block: Floats, info: TensorInfo, first_row: int) -> None:
    """NotFinite naming the first NaN or infinity; `first_row` is the block's place."""
    import numpy as np

    # One pass decides for nearly every block: NaN and infinity survive a sum of squares, and a
    # finite one that overflows only costs the exact test.
    flat = block.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.einsum("i,i->", flat, flat)):
            return
    bad = np.argwhere(~np.isfinite(block))
    if bad.size:
        row, column = (int(n) for n in bad[0])
        raise NotFinite(
            f"the weight at row {first_row + row}, column {column} is {block[row, column]}",
            path=info.path,
            tensor=info.name,
            hint="the checkpoint is damaged",
        )
