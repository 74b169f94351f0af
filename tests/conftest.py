"""Fixtures that several test modules share."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptforensics
from ckptforensics import Signature
from ckptforensics.results import LayersDocument

ROOT = Path(__file__).resolve().parents[1]
# Tests measure, whatever was signed before; those of the cache name a directory.
os.environ["CKPT_CACHE"] = ""
# Nor is anybody's catalog written to.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="ckpt-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)
# Tables are as wide as a pipe's, whatever terminal the tests run in.
os.environ.pop("COLUMNS", None)
# Processes that tests start would each compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Nor do the processes that tests start wait for each other's threads (see pytest_sessionstart).
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Fixtures that are real models; what uses one of them, also through another, has the marker.
REAL_MODELS = {"smollm2_gguf", "smollm2_bf16", "smollm2_f32", "gemma3", "minilm"}

# Files that take longest, the longest first: one that began last would run alone at the end.
LONGEST = (
    "families/test_families.py",
    "runtime/test_experiments.py",
    "registry/test_expected.py",
    "test_memory.py",
    "findings/test_fingerprint.py",
    "lineage/test_smollm2.py",
    "lineage/test_zoo.py",
    "cli/test_docs.py",
    "lineage/test_encodings.py",
    "runtime/test_trace.py",
    "test_notebook.py",
    "registry/test_killed.py",
    "linear/test_fit.py",
    "cli/test_compare.py",
    "linear/test_moments.py",
    "compute/test_threads.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Files are handed to pytest-xdist's workers in the order of `LONGEST`, not by their tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_sessionstart() -> None:
    """Matrices this small take up to ten times as long on several threads that wait by spinning."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs a real model, before `-m` selects; the longest files are first."""
    place = {str(ROOT / "tests" / name): at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONGEST)))
    for item in items:
        if not REAL_MODELS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("real_model")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not walk it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """What the test starts can be interrupted.

    A process whose parent ignores SIGINT ignores it too, as a shell's background jobs do; tests
    run there as well.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _real_model(make: Callable[[], Path]) -> Path:
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
def minilm() -> Path:
    """all-MiniLM-L6-v2, an encoder."""
    from tools.minilm import model_directory

    return _real_model(model_directory)


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
def smollm2_signature(smollm2_gguf: Path) -> Signature:
    """Its signature with the default fit."""
    return ckptforensics.sign(smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_layers(smollm2_gguf: Path) -> LayersDocument:
    """Its explosion and decay layers, with their evidence."""
    return ckptforensics.find_layers(smollm2_gguf)


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
