"""Work in a forked process, which may be killed or lose its rights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable


def forked(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does the work."""
    return os.waitpid(fork(work), 0)[1]


def fork(work: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the tests' own
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child
