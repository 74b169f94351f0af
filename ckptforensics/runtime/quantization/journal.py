"""The rows of an evaluation that is under way, kept so that it can go on after a kill.

A file is the SHA-256 of the rest in hex, a line's end, and JSON; it is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from ckptforensics.errors import OutputError
from ckptforensics.results import write_bytes_atomically


class Journal:
    """Finished parts by their names; a file that cannot be written or read only costs time.

    Parameters
    ----------
    path : of the file; None keeps nothing
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            if path is not None:
                digest, _, content = path.read_bytes().partition(b"\n")
                if hashlib.sha256(content).hexdigest().encode() == digest:
                    self.parts = json.loads(content)

    def keep(self, name: str, part: Any) -> None:
        """Write a finished part down."""
        self.parts[name] = part
        if self.path is None:
            return
        content = json.dumps(self.parts).encode()
        digest = hashlib.sha256(content).hexdigest().encode()
        with contextlib.suppress(OutputError):
            write_bytes_atomically(self.path, digest + b"\n" + content)

    def discard(self) -> None:
        """Remove the file: everything is finished."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
