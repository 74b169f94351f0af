"""Quantized weights of Hugging Face checkpoints as ordinary tensors, dequantized by rows."""

from ckptforensics.tensors.quantized.reader import QuantizedReader, wrap_quantized

__all__ = ["QuantizedReader", "wrap_quantized"]
