"""The linear approximation of a block: norm folding, attention map, FFN fit, block operator."""

from ckptforensics.compute.operator import Operator
from ckptforensics.linear.attention import AttentionMap
from ckptforensics.linear.block import block_map, ffn_map
from ckptforensics.linear.fit import Calibration, Fit, fit_ffn
from ckptforensics.linear.moments import gaussian_moments
from ckptforensics.linear.operators import (
    BlockMap,
    ExpertsMap,
    FfnMap,
    ResidualMap,
)

__all__ = [
    "AttentionMap",
    "BlockMap",
    "Calibration",
    "ExpertsMap",
    "FfnMap",
    "Fit",
    "Operator",
    "ResidualMap",
    "block_map",
    "ffn_map",
    "fit_ffn",
    "gaussian_moments",
]
