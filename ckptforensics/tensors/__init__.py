"""Containers and element types: any row range of a tensor as float32, read where it lies.

Adapters and quantized weights are in modules of their own, which a saved result does not need.
"""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.tensors.info import Container, TensorInfo, matrix_shape

if TYPE_CHECKING:
    from ckptforensics.tensors.files import FileReader, open_files
    from ckptforensics.tensors.reader import TensorReader

__all__ = ["Container", "FileReader", "TensorInfo", "TensorReader", "matrix_shape", "open_files"]

__getattr__ = on_first_use(
    __name__, {"FileReader": "files", "TensorReader": "reader", "open_files": "files"}
)
