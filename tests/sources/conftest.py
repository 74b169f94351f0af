"""A loopback Hub for the tests of repositories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.support.hub import Hub, loopback_hub


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[None]:
    """One HTTP client for all tests: it reads all certificates when it is made."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with loopback_hub(monkeypatch, tmp_path / "cache") as served:
        yield served
