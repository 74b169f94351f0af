"""Reused memory: never while anything refers to it, never kept longer than asked for."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ckptforensics.compute import buffers

LARGE = (300, 1000)


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again():
    with buffers.reused():
        first = buffers.empty(LARGE)
        assert first.shape == LARGE and first.dtype == np.float32 and first.flags.writeable
        at = place(first)
        del first
        assert place(buffers.empty(LARGE[::-1])) == at


def test_memory_is_not_used_again_while_a_view_lives():
    """Of every kind of view, also of views of views whose array is gone."""
    views = (
        lambda a: a[1:],
        lambda a: a.T,
        lambda a: a.reshape(-1)[::3],
        lambda a: a[5].view(np.uint32)[2:],
        lambda a: np.split(a, 3)[1].T[4:],
        lambda a: memoryview(a[2:]),
        lambda a: np.frombuffer(memoryview(a)[7:], np.float32),
        lambda a: np.ascontiguousarray(np.atleast_2d(a)).reshape(10, -1),
    )
    with buffers.reused():
        for make in views:
            array = buffers.empty(LARGE)
            array[:] = 1
            view = make(array)
            at = place(array)
            del array
            gc.collect()
            other = buffers.empty(LARGE)
            assert place(other) != at
            other[:] = 2
            assert np.all(np.asarray(view).view(np.float32) == 1)
            del view, other


def test_nothing_is_kept_afterwards():
    with buffers.reused():
        with buffers.reused():
            kept = buffers.empty(LARGE)
            del kept
        assert buffers._pool._idle  # the outer one goes on
    assert not buffers._pool._idle
    late = buffers.empty(LARGE)
    del late
    assert not buffers._pool._idle


def test_memory_of_other_sizes_is_let_go():
    """Else a model of unequal blocks would take the memory of several."""
    with buffers.reused():
        some = [buffers.empty(LARGE) for _ in range(3)]
        del some
        assert sum(map(len, buffers._pool._idle.values())) == 3
        buffers.empty((301, 1000))
        assert sum(map(len, buffers._pool._idle.values())) == 1


def test_small_arrays_are_ordinary():
    with buffers.reused():
        small = buffers.empty((2, 3))
        assert small.shape == (2, 3) and small.base is None
        assert buffers.empty((0, 5)).shape == (0, 5)


def test_threads_never_share():
    def work(value: int) -> bool:
        good = True
        for _ in range(200):
            array = buffers.empty(LARGE)
            array[:] = value
            good &= bool((array[::7, ::11] == value).all())
        return good

    with buffers.reused(), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
