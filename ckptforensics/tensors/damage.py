"""Bytes that training does not leave: zeros, rows that are repeated exactly, NaN and infinities.

A sparse copy or a download that stopped has zeros where weights should be, and every number in it
is finite. What is read for another purpose is looked at while its bytes are still in memory: every
page of the file by its first bytes, and every row of a matrix by 32 of its bytes; only what these
make suspicious is compared whole.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ckptforensics.errors import TensorError
from ckptforensics.tensors.finite import element_bytes, not_finite
from ckptforensics.tensors.info import TensorInfo, matrix_shape

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes

# What a file system leaves out of a sparse file, and downloads fetch, is a multiple of this.
PAGE = 4096
# Bytes of a page that are looked at first, and of a row in two places.
_FIRST = 16
# Elements of 16 bits looked at for their type, and how many different ones tell anything.
_SAMPLED = 4096
_DIFFERENT = 64
# The type that another is taken for, and the spread of logarithms (base 2) that true ones have.
_OTHER_TYPE: Mapping[str, tuple[str, tuple[float, float]]] = {
    "BF16": ("F16", (0.0, 8.0)),
    "F16": ("BF16", (0.3, math.inf)),
}
# Pages of a tensor that `glance` looks at, evenly spread.
_GLANCES = 8


@dataclass(frozen=True)
class Stretch:
    """Something in a stored tensor that training does not leave.

    Attributes
    ----------
    tensor : as it is stored
    what : `zeros`, a stretch of zero bytes; `constant`, one other value everywhere; `repeated`,
        rows that equal an earlier one; `not-finite`, elements that are NaN or infinite
    rows : first and last row of it, from 0; of repeated rows those of the first pair
    begin, end : bytes of the file, of the longest stretch of zeros or all of what else it is
    count : stretches of zeros, rows that repeat another, or elements that are not finite
    """

    tensor: TensorInfo
    what: Literal["zeros", "constant", "repeated", "not-finite"]
    rows: tuple[int, int]
    begin: int
    end: int
    count: int

    @property
    def whole(self) -> bool:
        """Whether all of the tensor is zero."""
        return self.what == "zeros" and self.end - self.begin == self.tensor.nbytes


class Watch:
    """Looks at the bytes of the tensors of some files, as they are read or on its own.

    Parameters
    ----------
    files : whose tensors are watched
    read : bytes of a tensor, by its entry, the first byte in it and their number
    local : the files are whole on this machine, so that `glance` may read them
    """

    def __init__(
        self,
        files: Iterable[Path],
        read: Callable[[TensorInfo, int, int], Bytes],
        *,
        local: bool,
    ) -> None:
        self._files = frozenset(files)
        self._read = read
        self._local = local
        self._lock = threading.Lock()
        self._seen: dict[str, set[tuple[int, int]]] = {}
        self._zeros: dict[str, list[tuple[int, int]]] = {}
        self._repeats: dict[str, list[tuple[int, int]]] = {}
        self._constant: set[str] = set()
        self._not_finite: dict[str, list[tuple[int, int, int]]] = {}

    def see(self, info: TensorInfo, begin: int, raw: Bytes, *, finite: bool = False) -> None:
        """Look at bytes that were just read.

        Parameters
        ----------
        begin : place of the first in the tensor
        finite : whoever read them has found that every number is finite
        """
        if raw.size < min(PAGE, info.nbytes):
            return
        with self._lock:
            seen = self._seen.setdefault(info.name, set())
            if (begin, raw.size) in seen:
                return
            seen.add((begin, raw.size))
        if begin == 0:
            _require_plausible(info, raw)
        if not finite and (bad := not_finite(info.dtype, raw)) is not None:
            with self._lock:
                self._not_finite.setdefault(info.name, []).append(
                    (begin + bad[0], begin + bad[1], bad[2])
                )
        zeros = list(_zero_pages(raw, (info.offset + begin) % PAGE))
        if raw.size == info.nbytes < PAGE and not raw.any():
            zeros = [(0, raw.size)]
        row_bytes = _row_bytes(info)
        repeats: list[tuple[int, int]] = []
        constant = False
        if row_bytes and begin % row_bytes == 0 and raw.size >= 2 * row_bytes:
            rows = raw[: raw.size // row_bytes * row_bytes].reshape(-1, row_bytes)
            repeats = list(_repeated(rows))
            if len(repeats) == len(rows) - 1 and raw.size == info.nbytes:
                width = max(1, row_bytes // max(1, info.shape[-1]))
                constant = bool((rows[0].reshape(-1, width) == rows[0][:width]).all())
            alike = sorted({at for pair in repeats for at in pair})
            zeros += [(i * row_bytes, (i + 1) * row_bytes) for i in alike if not rows[i].any()]
        if not (zeros or repeats):
            return
        first = begin // row_bytes if row_bytes else 0
        with self._lock:
            self._zeros.setdefault(info.name, []).extend((begin + a, begin + b) for a, b in zeros)
            self._repeats.setdefault(info.name, []).extend(
                (first + a, first + b) for a, b in repeats
            )
            if constant:
                self._constant.add(info.name)

    def holds(self, info: TensorInfo) -> bool:
        """Whether the tensor is of the files that are watched."""
        return info.path in self._files

    def seen(self, info: TensorInfo) -> bool:
        """Whether every byte of the tensor was looked at."""
        reach = 0
        for begin, count in sorted(self._seen.get(info.name, ())):
            if begin > reach:
                return False
            reach = max(reach, begin + count)
        return reach >= info.nbytes

    def glance(self, info: TensorInfo, *, whole: bool) -> Literal["whole", "sampled", "none"]:
        """Look at a tensor that nothing else reads, a few pages of it or all of it.

        One of whose pages is zero, or holds a number that is not finite, is looked at whole.

        Returns
        -------
        how much was looked at; nothing of files that are not on this machine
        """
        import numpy as np

        if self.seen(info):
            return "whole"
        if not self._local or info.unreadable:
            return "none"
        if not whole and info.nbytes > _GLANCES * PAGE:
            size = element_bytes(info.dtype)
            last, count = (info.nbytes - PAGE) // size, PAGE // size * size
            places = [last * i // (_GLANCES - 1) * size for i in range(_GLANCES)]
            pages = np.stack([self._read(info, at, count) for at in places])
            if pages.any(axis=1).all() and not_finite(info.dtype, pages.reshape(-1)) is None:
                return "sampled"
        self.see(info, 0, self._read(info, 0, info.nbytes))
        return "whole"

    def bad_numbers(self, info: TensorInfo) -> Stretch | None:
        """The NaN and infinities that were seen in a tensor."""
        parts = self._not_finite.get(info.name)
        if not parts:
            return None
        begin, end = min(part[0] for part in parts), max(part[1] for part in parts)
        row_bytes = _row_bytes(info) or info.nbytes
        rows = (begin // row_bytes, (end - 1) // row_bytes)
        place = (info.offset + begin, info.offset + end)
        return Stretch(info, "not-finite", rows, *place, sum(part[2] for part in parts))

    def found(
        self, info: TensorInfo, harmless: Callable[[int, int], bool] = lambda first, last: False
    ) -> list[Stretch]:
        """What else was seen in a tensor: at most one of each kind.

        Parameters
        ----------
        harmless : whether zeros from one row to another, both of them in it, are no damage
        """
        if info.nbytes == 0:
            return []
        row_bytes = _row_bytes(info) or info.nbytes
        every = _joined(self._zeros.get(info.name, []))
        stretches = [
            part for part in every if not harmless(part[0] // row_bytes, (part[1] - 1) // row_bytes)
        ]
        found = []
        last, end = max(0, info.nbytes // row_bytes - 1), info.offset + info.nbytes
        if info.name in self._constant and not every:
            return [Stretch(info, "constant", (0, last), info.offset, end, 1)]
        if stretches:
            a, b = self._exactly(info, *max(stretches, key=lambda part: part[1] - part[0]))
            rows = (a // row_bytes, (b - 1) // row_bytes)
            found.append(
                Stretch(info, "zeros", rows, info.offset + a, info.offset + b, len(stretches))
            )
        zero = {i for a, b in every for i in range(-(-a // row_bytes), b // row_bytes)}
        repeats = sorted(p for p in self._repeats.get(info.name, []) if p[1] not in zero)
        if repeats:
            ends = [at for pair in repeats for at in pair]
            begin, end = min(ends) * row_bytes, (max(ends) + 1) * row_bytes
            count = len({later for _, later in repeats})
            place = (info.offset + begin, info.offset + end)
            found.append(Stretch(info, "repeated", repeats[0], *place, count))
        return found

    def _exactly(self, info: TensorInfo, begin: int, end: int) -> tuple[int, int]:
        """The stretch with the zero elements on both sides of its pages."""
        if not self._local:
            return begin, end
        before = self._read(info, max(0, begin - PAGE), min(PAGE, begin))
        after = self._read(info, end, min(PAGE, info.nbytes - end))
        columns, rows = matrix_shape(info)
        width = max(1, info.nbytes // max(1, columns * rows))
        begin -= _zeros_first(before[::-1]) // width * width
        return begin, end + _zeros_first(after) // width * width


def _require_plausible(info: TensorInfo, raw: Bytes) -> None:
    """TensorError if elements of 16 bits are spread as only those of the other type can be.

    BF16 and F16 differ by three bits of the exponent, so that one read as the other has its
    logarithms times eight or divided by eight. Those of weights of any kind, random ones among
    them, have a standard deviation of 1 to 3 (base 2).
    """
    # Scales of quantized weights may well be of one size; they have other names.
    weight = info.name.endswith("weight") and _row_bytes(info)
    if info.dtype not in _OTHER_TYPE or not weight or raw.size < PAGE:
        return
    import numpy as np

    from ckptforensics.tensors.dtypes import decoder

    words = raw[: raw.size // 2 * 2].view(np.uint16)
    chosen = np.ascontiguousarray(words[:: max(1, words.size // _SAMPLED)])
    values = np.empty(chosen.size, np.float32)
    decoder(info.dtype, path=info.path, tensor=info.name)(chosen.view(np.uint8), values)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)].astype(np.float64))
    if sizes.size < _DIFFERENT:
        return
    other, (low, high) = _OTHER_TYPE[info.dtype]
    within = low <= float(np.log2(sizes).std()) <= high
    # Few numbers, as of unpacked ternary weights, may well be of one size.
    if not within and np.unique(sizes).size >= _DIFFERENT:
        raise TensorError(
            f"the elements are labelled {info.dtype}, and their sizes are spread as only those of "
            f"{other} read so are",
            path=info.path,
            tensor=info.name,
            hint="fetch the file again, or correct what wrote its header",
        )


def _zeros_first(raw: Bytes) -> int:
    """Number of zeros before the first other byte."""
    other = raw.nonzero()[0]
    return int(other[0]) if other.size else raw.size


def _row_bytes(info: TensorInfo) -> int:
    """Stored bytes of a row; 0 of what has no two rows of two elements each."""
    columns, rows = matrix_shape(info)
    return info.nbytes // rows if rows > 1 and columns > 1 else 0


def _zero_pages(raw: Bytes, place: int) -> Iterator[tuple[int, int]]:
    """Pages of the file that are zero; `place` is the first byte's within its page."""
    import numpy as np

    first = -place % PAGE
    count = (raw.size - first) // PAGE
    if count <= 0:
        return
    pages = raw[first : first + count * PAGE].reshape(count, PAGE)
    for i in np.flatnonzero(~pages[:, :_FIRST].any(axis=1)):
        if not pages[i].any():
            yield first + int(i) * PAGE, first + (int(i) + 1) * PAGE


def _repeated(rows: Bytes) -> Iterator[tuple[int, int]]:
    """Rows (earlier, later) that are equal, each later one once."""
    import numpy as np

    width = min(_FIRST, rows.shape[1])
    middle = (rows.shape[1] - width) // 2
    sample = np.zeros((len(rows), 2 * _FIRST), np.uint8)
    sample[:, :width] = rows[:, :width]
    sample[:, _FIRST : _FIRST + width] = rows[:, middle : middle + width]
    odd = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 1], np.uint64)
    with np.errstate(over="ignore"):
        mixed = (sample.view(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    order = np.argsort(mixed, kind="stable")
    ordered = mixed[order]
    equal = ordered[1:] == ordered[:-1]
    if not equal.any():
        return
    for group in np.split(order, np.flatnonzero(~equal) + 1):
        if len(group) > 1:
            first: dict[bytes, int] = {}
            for i in map(int, group):
                # By a digest, since many rows may be alike where they were sampled.
                lead = first.setdefault(hashlib.blake2b(rows[i], digest_size=16).digest(), i)
                if lead != i:
                    yield lead, i


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges, where they touch or overlap as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
