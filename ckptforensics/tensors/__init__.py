"""Containers and element types: any row range of a tensor as float32, read where it lies."""

from ckptforensics.tensors.adapters import AdaptedStore, merge_adapter
from ckptforensics.tensors.info import Container, TensorInfo
from ckptforensics.tensors.quantized import QuantizedStore, wrap_quantized
from ckptforensics.tensors.store import TensorStore, open_store

__all__ = [
    "AdaptedStore",
    "Container",
    "QuantizedStore",
    "TensorInfo",
    "TensorStore",
    "merge_adapter",
    "open_store",
    "wrap_quantized",
]
