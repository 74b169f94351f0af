"""Quantized weights of Hugging Face checkpoints as ordinary tensors, dequantized by rows."""

from ckptforensics.tensors.quantized.reader import QuantizedStore, wrap_quantized

__all__ = ["QuantizedStore", "wrap_quantized"]
