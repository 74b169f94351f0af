"""Containers and element types: any row range of a tensor as float32, read where it lies.

Adapters and quantized weights are in modules of their own, which a saved result does not need.
"""

from ckptforensics.tensors.info import Container, TensorInfo
from ckptforensics.tensors.store import TensorStore, open_store

__all__ = ["Container", "TensorInfo", "TensorStore", "open_store"]
