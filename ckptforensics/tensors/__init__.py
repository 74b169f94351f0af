"""Containers and element types: any row range of a tensor as float32, read where it lies.

Adapters and quantized weights are in modules of their own, which a saved result does not need.
"""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.tensors.info import Container, TensorInfo, matrix_shape

if TYPE_CHECKING:
    from ckptforensics.tensors.files import TensorStore, open_store

__all__ = ["Container", "TensorInfo", "TensorStore", "matrix_shape", "open_store"]

__getattr__ = on_first_use(__name__, {"TensorStore": "files", "open_store": "files"})
