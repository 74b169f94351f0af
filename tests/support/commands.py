"""`ckpt` in this process: what a process of its own prints, without its start."""

from __future__ import annotations

import io
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from ckptforensics.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    """Exit code and what was printed, named as `subprocess.run` names them."""

    returncode: int
    stdout: str
    stderr: str


def ckpt(*words: object, cwd: Path = ROOT, **environment: str) -> Done:
    """Run a command line in a directory; where a process of its own matters, this is no test."""
    out, err = io.StringIO(), io.StringIO()
    here = mock.patch.dict(os.environ, environment)
    with chdir(cwd), here, redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())
