"""The published algorithm for one layer, with torch: what the benchmarks compare with.

100,000 vectors n ~ N(0, I), the FFN's hidden activation y(n), least squares for F1 in y = F1 n,
then the dense SVD of I + A, I + F and L = (I + F)(I + A).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from ckptforensics.layers import Block


@dataclass(frozen=True)
class Published:
    """What the published algorithm took for one layer, and the direction it found."""

    layer: int
    sampling: float
    least_squares: float
    svd: float
    cpu: float
    direction: np.ndarray

    @property
    def seconds(self) -> float:
        return self.sampling + self.least_squares + self.svd


def published_layer(block: Block, samples: int, driver: str) -> Published:
    """Run the published algorithm on one block of a LLaMA-like model."""
    attention, ffn = block.attention, block.ffn
    assert ffn.gate is not None and ffn.activation == "silu"
    weight = torch.from_numpy
    width = ffn.norm.gain.size

    cpu = time.process_time()
    begun = time.perf_counter()
    n = torch.randn(samples, width)
    y = torch.nn.functional.silu(n @ weight(ffn.gate.weight).T) * (n @ weight(ffn.up.weight).T)
    sampled = time.perf_counter()
    f1 = torch.linalg.lstsq(n, y, driver=driver).solution.T
    solved = time.perf_counter()
    value = weight(attention.value.weight)
    heads = value.view(-1, attention.head_dim, width)
    value = heads.repeat_interleave(attention.repeats, dim=0).reshape(-1, width)
    eye = torch.eye(width)
    a = weight(attention.output.weight) @ value @ torch.diag(weight(attention.norm.gain)) + eye
    f = weight(ffn.down.weight) @ f1 @ torch.diag(weight(ffn.norm.gain)) + eye
    torch.linalg.svd(a)
    torch.linalg.svd(f)
    u, _, _ = torch.linalg.svd(f @ a)
    done = time.perf_counter()
    return Published(
        layer=block.layer,
        sampling=sampled - begun,
        least_squares=solved - sampled,
        svd=done - solved,
        cpu=time.process_time() - cpu,
        direction=u[:, 0].numpy(),
    )
