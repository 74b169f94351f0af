"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Tests measure, whatever was signed before; those of the cache name a directory.
os.environ["CKPT_CACHE"] = ""


def pytest_sessionstart() -> None:
    """Matrices this small take up to ten times as long on several threads that wait by spinning."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _real_model(make):
    """Call `make`; without the model CI fails and other machines skip, both with the reason."""
    try:
        return make()
    except RuntimeError as problem:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the real model is not available: {problem}")


@pytest.fixture(scope="session")
def planted() -> Path:
    """The committed checkpoint with a planted explosion (layer 3) and decay (layer 7)."""
    return ROOT / "fixtures" / "planted"


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M as GGUF (Q4_K_M)."""
    from tools.gemma3 import gguf_file

    return _real_model(gguf_file)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Q4_1)."""
    from tools.smollm2 import gguf_file

    return _real_model(gguf_file)


@pytest.fixture(scope="session")
def smollm2_bf16(smollm2_gguf: Path) -> Path:
    """The same model in Hugging Face layout, BF16, in 3 shards."""
    from tools.smollm2 import cached_hf_layout

    return cached_hf_layout("BF16")


@pytest.fixture(scope="session")
def smollm2_f32(smollm2_gguf: Path) -> Path:
    """The same model in Hugging Face layout with exactly the dequantized weights."""
    from tools.smollm2 import cached_hf_layout

    return cached_hf_layout("F32")
