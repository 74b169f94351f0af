"""Integers of a few bits in 32-bit words: GPTQ, AWQ and compressed-tensors' packed format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import FormatError, NothingAnalysable, TensorError
from ckptforensics.tensors.quantized.base import FLOATS, Parts, Quantized, RowReader, times, unpack
from ckptforensics.tensors.quantized.scaled import ACTIVATIONS, group_index

if TYPE_CHECKING:
    from ckptforensics.arrays import Array, Floats

_WORD = 32
_GPTQ_BITS = (2, 3, 4, 8)
_AWQ_BITS = 4
# Rows whose codes are looked at for their centre. Where zero points are right, the mean of code
# minus zero is 0.00 to 0.1 steps (4-bit SmolLM2); one format read as the other makes it about 1.
_CENTRED_ROWS = 64
_OFF_CENTRE = 0.6
_MUCH_FURTHER = 3
# The column, of eight, that the n-th four bits of a word hold.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Gptq(Quantized):
    """scale (code - zero), packed along the inputs; a column's group may be any.

    Parts: qweight (in bits / 32, out), qzeros (groups, out bits / 32), scales (groups, out) and,
    with an order of its own, g_idx (in). Zeros are stored minus 1 but for `gptq_v2`.
    """

    def __init__(self, parts: Parts) -> None:
        self.zero_offset = _zero_offset(parts)
        words, rows = parts.shape("qweight", dtypes=("I32",), axes=2)
        groups, _ = parts.shape("qzeros", dtypes=("I32",), axes=2)
        parts.require("scales", (groups, rows), dtypes=FLOATS)
        self.bits = _gptq_bits(parts, rows)
        columns, rest = divmod(words * _WORD, self.bits)
        if rest:
            raise parts.wrong("qweight", f"{words} words do not hold codes of {self.bits} bits")
        self.groups, self.g_idx = groups, "g_idx" in parts
        self.group_size = _group_size(parts, columns, groups)
        if self.g_idx:
            parts.require("g_idx", (columns,), dtypes=("I32", "I64"))
        elif groups > 1 and parts.config.get("desc_act") is True:
            parts.info("g_idx")  # raises: the order of the columns is lost
        self.granule = _WORD
        super().__init__(parts, parts.stem + "weight", f"GPTQ{self.bits}", (rows, columns))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, bits, (rows, columns) = self.parts, self.bits, self.shape
        index = group_index(parts, "g_idx", self.groups) if self.g_idx else None
        in_order = parts.config.get("desc_act") is not True
        if index is None or (in_order and self.groups > 1 and not index.any()):
            index = np.arange(columns) // self.group_size
        codes, zero_codes = parts.codes("qweight"), parts.codes("qzeros")
        scales = parts.floats("scales")
        mask = (1 << bits) - 1

        def zeros_of(start: int, stop: int, offset: int) -> Array:
            first = start // _WORD * _WORD
            last = min(-(-stop // _WORD) * _WORD, rows)
            words = zero_codes[:, first * bits // _WORD : -(-last * bits // _WORD)]
            stored = unpack(words, bits, stop - first)[:, start - first :]
            # The sum wraps, as in the reference: a zero point of 0 is stored as the largest code.
            return ((stored.astype(np.int16) + offset) & mask).T

        def codes_of(start: int, stop: int) -> Floats:
            return unpack(codes[:, start:stop].T, bits, columns).astype(np.float32)

        sampled = min(rows, _CENTRED_ROWS)
        both = [zeros_of(0, sampled, offset) for offset in (self.zero_offset, 1 - self.zero_offset)]
        self._require_centred(codes_of(0, sampled), [zeros[:, index] for zeros in both])

        def read(start: int, stop: int) -> Floats:
            out = codes_of(start, stop)
            out -= zeros_of(start, stop, self.zero_offset)[:, index]
            out *= scales[:, start:stop].T[:, index]
            return out

        return read

    def _require_centred(self, codes: Floats, zeros: Sequence[Array]) -> None:
        """TensorError if the zero points are right in the other of the two formats only.

        Read in the wrong one, every weight is off by a step of the quantizer: a large change along
        one direction. Symmetric zero points are half the range of the codes; other ones lie near
        the mean of the codes, since that of trained weights is nearly 0.

        Parameters
        ----------
        codes : (rows, columns) a sample
        zeros : (rows, columns) their zero points in the stated format and in the other
        """
        half = 1 << (self.bits - 1)
        here, there = (float((codes - z).mean()) for z in zeros)
        symmetric_there = bool((zeros[1] == half).all())
        further = abs(here) > _OFF_CENTRE and abs(here) > _MUCH_FURTHER * abs(there)
        if symmetric_there or (further and not (zeros[0] == half).all()):
            written, right = ("gptq", "gptq_v2") if self.zero_offset else ("gptq_v2", "gptq")
            raise TensorError(
                f"the zero points do not fit the format {written!r} that the configuration states: "
                f"the codes lie {here:+.2f} from them in the mean, and {there:+.2f} in {right!r}",
                path=self.parts.info("qzeros").path,
                tensor=self.parts.stem + "qzeros",
                hint=f"set 'checkpoint_format' to {right!r} in the quantization's configuration",
            )


def _zero_offset(parts: Parts) -> int:
    """What was subtracted from the zero points when they were stored."""
    written = parts.config.get("checkpoint_format") or "gptq"
    if parts.config.get("is_marlin_format"):
        written = "marlin"
    if written not in ("gptq", "gptq_v2"):
        raise NothingAnalysable(
            f"the weights are quantized (gptq in the format {written!r}), "
            "which this version does not read",
            path=parts.store.containers[0].path,
            hint="known are gptq and gptq_v2",
        )
    return 1 if written == "gptq" else 0


def _gptq_bits(parts: Parts, rows: int) -> int:
    """Bits of a code, by the width of the packed zero points; checked with the configuration."""
    width = parts.info("qzeros").shape[1]
    fit = [bits for bits in _GPTQ_BITS if -(-rows * bits // _WORD) == width]
    configured = parts.config.get("bits")
    if configured in fit and type(configured) is int:
        return configured
    if len(fit) == 1 and (configured is None or parts.config.get("dynamic")):
        return fit[0]
    raise parts.wrong(
        "qzeros",
        f"{width} words for {rows} output columns do not fit codes of {configured!r} bits "
        f"(known are {', '.join(map(str, _GPTQ_BITS))})",
    )


def _group_size(parts: Parts, columns: int, groups: int) -> int:
    """Columns of a group; TensorError if the configured size gives another number of groups."""
    size = parts.config.get("group_size", parts.config.get("q_group_size"))
    if size is None or parts.config.get("dynamic"):
        size = -(-columns // groups)
    if size == -1:
        size = columns
    if type(size) is not int or size < 1 or -(-columns // size) != groups:
        raise parts.wrong(
            "scales", f"{groups} groups of {size!r} columns do not make {columns} columns"
        )
    return size


class Awq(Quantized):
    """scale (code - zero), packed along the outputs eight by eight in an order of their own.

    Parts: qweight (in, out / 8), qzeros (groups, out / 8), scales (groups, out).
    """

    granule = 8

    def __init__(self, parts: Parts) -> None:
        version = str(parts.config.get("version") or "gemm").lower()
        if version != "gemm":
            raise NothingAnalysable(
                f"the weights are quantized (awq in the format {version!r}), "
                "which this version does not read",
                path=parts.store.containers[0].path,
                hint="known is gemm",
            )
        bits = parts.config.get("bits", parts.config.get("w_bit", _AWQ_BITS))
        if bits != _AWQ_BITS:
            raise parts.wrong("qweight", f"codes of {bits!r} bits; AWQ's are of {_AWQ_BITS}")
        columns, words = parts.shape("qweight", dtypes=("I32",), axes=2)
        groups, _ = parts.shape("qzeros", dtypes=("I32",), axes=2)
        rows = words * len(_AWQ_ORDER)
        parts.require("qzeros", (groups, words), dtypes=("I32",))
        parts.require("scales", (groups, rows), dtypes=FLOATS)
        self.group_size = _group_size(parts, columns, groups)
        super().__init__(parts, parts.stem + "weight", f"AWQ{_AWQ_BITS}", (rows, columns))

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        codes, zero_codes = self.parts.codes("qweight"), self.parts.codes("qzeros")
        scales = self.parts.floats("scales")
        index = np.arange(self.shape[1]) // self.group_size
        place = np.argsort(_AWQ_ORDER)

        def columns_of(words: Array, start: int, stop: int) -> Array:
            first = start // 8
            taken = words[:, first : -(-stop // 8)]
            numbers = unpack(taken, _AWQ_BITS, 8 * taken.shape[1])
            ordered = numbers.reshape(len(words), -1, 8)[:, :, place].reshape(len(words), -1)
            return ordered[:, start - 8 * first : stop - 8 * first]

        def read(start: int, stop: int) -> Floats:
            out = columns_of(codes, start, stop).T.astype(np.float32)
            zeros = columns_of(zero_codes, start, stop).astype(np.float32)
            out -= zeros.T[:, index]
            out *= scales[:, start:stop].T[:, index]
            return np.ascontiguousarray(out)

        return read


class PackQuantized(Quantized):
    """compressed-tensors' `pack-quantized`: scale (code - zero), packed along the inputs.

    Parts: weight_packed (out, in bits / 32), weight_scale (out, groups), weight_shape (2) and,
    where they are used, weight_zero_point (out bits / 32, groups) and weight_g_idx (in). Array and
    zeros are stored plus half their range.
    """

    def __init__(self, parts: Parts) -> None:
        packed_rows, words = parts.shape("weight_packed", dtypes=("I32",), axes=2)
        parts.shape("weight_shape", dtypes=("I64", "I32"))
        shape = parts.small("weight_shape")
        if len(shape) != 2 or shape[0] != packed_rows or not 0 < shape[1] <= words * _WORD:
            raise parts.wrong("weight_shape", f"a weight of {times(shape)} is not what is packed")
        rows, columns = shape
        self.bits = self._bits(parts, columns, words)
        self.scale_shape = parts.shape("weight_scale", dtypes=FLOATS)
        if self.scale_shape in ((1,), (), (1, 1)):
            self.scale_shape = (1, 1)
        elif self.scale_shape == (rows,):
            self.scale_shape = (rows, 1)
        groups = self.scale_shape[-1]
        if len(self.scale_shape) != 2 or self.scale_shape[0] not in (1, rows) or groups > columns:
            raise parts.wrong(
                "weight_scale", f"scales of shape {times(self.scale_shape)} for {rows} rows"
            )
        self.group_size = self._group_size(parts, columns, groups)
        self.zero = "weight_zero_point" in parts
        if self.zero:
            packed = -(-self.scale_shape[0] * self.bits // _WORD)
            parts.require("weight_zero_point", (packed, groups), dtypes=("I32",))
        self.g_idx = "weight_g_idx" in parts
        if self.g_idx:
            parts.require("weight_g_idx", (columns,), dtypes=("I32", "I64"))
        parts.note(*ACTIVATIONS)
        super().__init__(parts, parts.stem + "weight", f"INT{self.bits}", (rows, columns))

    @staticmethod
    def _bits(parts: Parts, columns: int, words: int) -> int:
        configured = {
            bits
            for weights in all_weights(parts)
            if type(bits := weights.get("num_bits")) is int and 1 <= bits <= 8
        }
        fit = [bits for bits in sorted(configured) if -(-columns * bits // _WORD) == words]
        # Older versions left bits of a word unused where codes do not fill it.
        apart = [bits for bits in fit if _WORD % bits and -(-columns // (_WORD // bits)) == words]
        if len(fit) != 1 or apart:
            raise parts.wrong(
                "weight_packed",
                f"{words} words for {columns} columns do not tell the bits of a code "
                f"(configured: {', '.join(map(str, sorted(configured))) or 'none'})",
            )
        return fit[0]

    @staticmethod
    def _group_size(parts: Parts, columns: int, groups: int) -> int:
        if groups == 1:
            return columns
        for weights in all_weights(parts):
            size = weights.get("group_size")
            if type(size) is int and size > 0 and -(-columns // size) == groups:
                return size
        raise parts.wrong(
            "weight_scale", f"{groups} groups for {columns} columns fit no configured group size"
        )

    def reader(self) -> RowReader:
        """See `Quantized`."""
        import numpy as np

        parts, bits, columns = self.parts, self.bits, self.shape[1]
        codes = parts.codes("weight_packed")
        scales = parts.floats("weight_scale").reshape(self.scale_shape)
        half = 1 << (bits - 1)
        zeros: Array = np.full((1, 1), half, np.uint8)
        if self.zero:
            packed = parts.codes("weight_zero_point")
            zeros = unpack(packed.T, bits, self.scale_shape[0]).T
        groups = group_index(parts, "weight_g_idx", self.scale_shape[1]) if self.g_idx else None
        if groups is None:
            groups = np.arange(columns) // self.group_size

        def spread_over(values: Array, start: int, stop: int) -> Array:
            taken = values if len(values) == 1 else values[start:stop]
            return taken if taken.shape[1] == 1 else taken[:, groups]

        def read(start: int, stop: int) -> Floats:
            out = unpack(codes[start:stop], bits, columns).astype(np.float32)
            out -= spread_over(zeros, start, stop)
            out *= spread_over(scales, start, stop)
            return out

        return read


def all_weights(parts: Parts) -> list[dict[str, Any]]:
    """How the weights of each of compressed-tensors' groups are quantized."""
    groups = parts.config.get("config_groups")
    if not isinstance(groups, dict):
        raise FormatError(
            "the quantization configuration has no 'config_groups'",
            path=parts.store.containers[0].path,
        )
    found = [g.get("weights") for g in groups.values() if isinstance(g, dict)]
    return [w for w in found if isinstance(w, dict)]
