"""Read one model in a process of its own: `python -m ckptforensics.registry.worker REQUEST`.

What is known is printed after each stage as a line of JSON, a `Reading`, so that a process that is
ended loses only the stage it was in.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from ckptforensics.registry.request import ReadingRequest


def main(arguments: list[str] | None = None) -> int:
    """Read the model that the request file describes; prints readings, one a line."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    # Not pydantic's own JSON, which refuses names that are not Unicode.
    request = ReadingRequest.model_validate(json.loads(Path(path).read_bytes()))
    from ckptforensics.registry.stages import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for reading in read(request):
            sys.stdout.write(reading.model_dump_json() + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
