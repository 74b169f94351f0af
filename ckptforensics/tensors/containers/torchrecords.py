"""What a PyTorch pickle is read as: names, storages and views of them, never objects of torch."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element type: name as in safetensors, bytes of one element."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Global:
    """A name the pickle refers to, as `module.name`; it is never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The elements of one or several tensors, in an entry of the archive.

    Attributes
    ----------
    key : entry's name under `data/`
    element : None for an untyped storage
    count : elements, bytes of an untyped storage
    """

    key: str
    element: ElementType | None
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes the entry must have."""
        return self.count * (self.element.nbytes if self.element else 1)


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: where in a storage its elements lie. Not yet checked against the storage.

    Attributes
    ----------
    storage : the elements
    element : their type
    offset : of the first element, in elements
    shape, stride : of equal length; strides in elements, not negative
    flags : the conjugate or negative bit is set
    """

    storage: Storage
    element: ElementType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    flags: bool


class OrderedDict(dict[Any, Any]):
    """Stands for `collections.OrderedDict`, the one class whose BUILD is allowed (and ignored)."""


ELEMENT_TYPES = MappingProxyType(
    {
        "float64": ElementType("F64", 8),
        "float32": ElementType("F32", 4),
        "float16": ElementType("F16", 2),
        "bfloat16": ElementType("BF16", 2),
        "float8_e4m3fn": ElementType("F8_E4M3", 1),
        "float8_e5m2": ElementType("F8_E5M2", 1),
        "float8_e4m3fnuz": ElementType("F8_E4M3FNUZ", 1),
        "float8_e5m2fnuz": ElementType("F8_E5M2FNUZ", 1),
        "float8_e8m0fnu": ElementType("F8_E8M0", 1),
        "int64": ElementType("I64", 8),
        "int32": ElementType("I32", 4),
        "int16": ElementType("I16", 2),
        "int8": ElementType("I8", 1),
        "uint64": ElementType("U64", 8),
        "uint32": ElementType("U32", 4),
        "uint16": ElementType("U16", 2),
        "uint8": ElementType("U8", 1),
        "bool": ElementType("BOOL", 1),
        "complex64": ElementType("C64", 8),
        "complex128": ElementType("C128", 16),
    }
)
STORAGES = MappingProxyType(
    {
        "torch.DoubleStorage": "float64",
        "torch.FloatStorage": "float32",
        "torch.HalfStorage": "float16",
        "torch.BFloat16Storage": "bfloat16",
        "torch.LongStorage": "int64",
        "torch.IntStorage": "int32",
        "torch.ShortStorage": "int16",
        "torch.CharStorage": "int8",
        "torch.ByteStorage": "uint8",
        "torch.BoolStorage": "bool",
        "torch.ComplexFloatStorage": "complex64",
        "torch.ComplexDoubleStorage": "complex128",
    }
)
UNTYPED = "torch.storage.UntypedStorage"
