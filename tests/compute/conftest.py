"""Any number of threads."""

from __future__ import annotations

import pytest

THREADS = [1, 2, 3, 7]


@pytest.fixture(params=THREADS)
def count_of_threads(request, monkeypatch) -> int:
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param
