"""Run a module with a limit on memory: `python -m ckptforensics.jobs.limited BYTES MODULE ...`."""

from __future__ import annotations

import os
import sys

# What Python, NumPy and the stacks of their threads reserve before anything is read.
_BASE_BYTES = 3_000_000_000
# Number of the process with which this one ends, whatever ends that one.
ENDS_WITH = "CKPT_ENDS_WITH"
_LOOK_SECONDS = 0.5


def main() -> None:
    """Let the process reserve so many bytes beside what a program needs, and run the module."""
    nbytes, module = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    _end_with(os.environ.pop(ENDS_WITH, None))
    try:
        import resource
    except ImportError:  # not on this operating system
        pass
    else:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = nbytes + _BASE_BYTES
        if most != resource.RLIM_INFINITY:
            limit = min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(parent: str | None) -> None:
    """End this process when its parent has ended, which a killed one tells nobody."""
    if parent is None:
        return
    import threading
    import time

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
