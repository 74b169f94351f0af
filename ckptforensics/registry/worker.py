"""Read one model in a process of its own: `python -m ckptforensics.registry.worker REQUEST`.

What is known is printed after each stage as a line of JSON, a `Reading`, so that a process that is
ended loses only the stage it was in.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from ckptforensics.registry.found import Found
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.request import ReadingRequest
from ckptforensics.registry.stores.files import changed


def main(arguments: list[str] | None = None) -> int:
    """Read the model that the request file describes; prints readings, one a line."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    # Not pydantic's own JSON, which refuses names that are not Unicode.
    request = ReadingRequest.model_validate(json.loads(Path(path).read_bytes()))
    beside = Path(path).parent
    sketch = None if request.sketch is None else str(beside / request.sketch)
    places = {"signature": str(beside / request.signature), "sketch": sketch}
    request = request.model_copy(update=places)
    here = {} if not request.elsewhere else states_here(request.found)
    from ckptforensics.registry.stages import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for reading in read(_translated(request, here)):
            reading = _as_listed(reading, here)
            sys.stdout.write(reading.model_dump_json() + "\n")
            sys.stdout.flush()
    return 0


def states_here(found: Found) -> dict[str, str]:
    """`FoundFile.changed` to the same on this machine, where the number of the device is another.

    All else that it tells of a file must be the same; a file of which it is not has changed, and is
    not in the result.
    """
    known = {}
    for file in found.files:
        if file.path is None or not file.changed:
            continue
        try:
            state = changed(os.stat(file.path))
        except OSError:
            continue
        if state.partition(":")[2] == file.changed.partition(":")[2]:
            known[file.changed] = state
    return known


def _translated(request: ReadingRequest, here: dict[str, str]) -> ReadingRequest:
    """The request as it would be if the model had been listed here."""
    files = tuple(
        replace(file, changed=here.get(file.changed, file.changed)) for file in request.found.files
    )
    known = {here.get(state, state): sha256 for state, sha256 in request.known.items()}
    found = replace(request.found, files=files)
    return request.model_copy(update={"found": found, "known": known})


def _as_listed(reading: Reading, here: dict[str, str]) -> Reading:
    """The reading for those who listed the model."""
    listed = {state: before for before, state in here.items()}
    files = tuple(
        file.model_copy(update={"changed": listed.get(file.changed, file.changed)})
        for file in reading.files
    )
    return reading.model_copy(update={"files": files})


if __name__ == "__main__":
    sys.exit(main())
