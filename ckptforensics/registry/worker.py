"""Read one model in a process of its own: `python -m ckptforensics.registry.worker REQUEST`.

Whatever the model is, the process that started this one lives: memory is limited here, time there.
What is known is printed after each stage as a line of JSON, a `Reading`, so that a process that is
ended loses only the stage it was in.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from ckptforensics.registry.request import ReadingRequest

# What Python, NumPy and their threads reserve before anything is read.
_BASE_BYTES = 3_000_000_000


def main(arguments: list[str] | None = None) -> int:
    """Read the model that the request file describes; prints readings, one a line."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    request = ReadingRequest.model_validate_json(Path(path).read_bytes())
    _limit_memory(request)
    from ckptforensics.registry.stages import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for reading in read(request):
            sys.stdout.write(reading.model_dump_json() + "\n")
            sys.stdout.flush()
    return 0


def _limit_memory(request: ReadingRequest) -> None:
    """Let the process reserve no more than it was granted, what it maps of files apart."""
    try:
        import resource
    except ImportError:  # not on this operating system
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = request.memory + request.found.bytes + _BASE_BYTES
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    sys.exit(main())
