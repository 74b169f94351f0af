"""NaN and infinities in stored elements, found without decoding them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptforensics.arrays import Bytes

# Word of an element and the bits that are all set where it is no finite number.
_PATTERNS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "F64": ("<u8", 0x7FF0000000000000),
        "F32": ("<u4", 0x7F800000),
        "BF16": ("<u2", 0x7F80),
        "F16": ("<u2", 0x7C00),
        "F8_E5M2": ("u1", 0x7C),
        "F8_E4M3": ("u1", 0x7F),
        "F8_E8M0": ("u1", 0xFF),
    }
)
# GGUF's blocks: their bytes, and where their factors lie, each an F16. The rest are integers.
BLOCKS: Mapping[str, tuple[int, tuple[int, ...]]] = MappingProxyType(
    {
        "Q4_0": (18, (0,)), "Q4_1": (20, (0, 2)), "Q5_0": (22, (0,)), "Q5_1": (24, (0, 2)),
        "Q8_0": (34, (0,)), "Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)),
        "Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,)),
        "IQ1_S": (50, (0,)), "IQ2_XXS": (66, (0,)), "IQ2_XS": (74, (0,)), "IQ2_S": (82, (0,)),
        "IQ3_XXS": (98, (0,)), "IQ3_S": (110, (0,)), "IQ4_NL": (18, (0,)), "IQ4_XS": (136, (0,)),
        "TQ1_0": (54, (52,)), "TQ2_0": (66, (64,)),
    }
)  # fmt: skip
# Bytes looked at at once, which stay in the processor's cache.
_AT_ONCE = 1 << 18


def element_bytes(dtype: str) -> int:
    """Bytes of an element, or of a block of them; 1 where nothing is looked for."""
    if dtype in BLOCKS:
        return BLOCKS[dtype][0]
    return int(_PATTERNS[dtype][0][-1]) if dtype in _PATTERNS else 1


def not_finite(dtype: str, raw: Bytes) -> tuple[int, int, int] | None:
    """First byte, end and number of the elements that are NaN or infinite; None if none is.

    Parameters
    ----------
    dtype : as a container spells it; of a type of integers, or one that is not known, none is
    raw : whole elements, or whole blocks, of which each counts as one
    """
    import numpy as np

    places = []
    for word, mask, first, step in _views(dtype):
        size = step or int(word[-1])
        count = raw.size // size
        rows = np.ndarray((count,), word, raw, first, (size,)) if count else raw[:0].view(word)
        several = max(1, _AT_ONCE // size)
        for at in range(0, count, several):
            masked = rows[at : at + several] & rows.dtype.type(mask)
            if masked.max() == mask:
                places.append(at + np.flatnonzero(masked == mask))
    if not places:
        return None
    found = np.unique(np.concatenate(places))
    size = element_bytes(dtype)
    return int(found[0]) * size, (int(found[-1]) + 1) * size, found.size


def _views(dtype: str) -> list[tuple[str, int, int, int]]:
    """Word, mask, first byte and step of what is looked at; a step of 0 is the word's own."""
    if dtype in BLOCKS:
        step, places = BLOCKS[dtype]
        return [(*_PATTERNS["F16"], place, step) for place in places]
    return [(*_PATTERNS[dtype], 0, 0)] if dtype in _PATTERNS else []
