"""What `ckpt` starts with: nothing is imported that the command does not need."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than printing the help
    from typing import NoReturn

_HELP = os.path.join(os.path.dirname(__file__), "help.txt")
_HELP_WIDTH = 80
# `ExitCode.INTERRUPTED`, before anything that knows it is imported.
_INTERRUPTED = 130


def run() -> None:
    """Console script: run and exit, also where an interrupt comes before the command begins."""
    sys.unraisablehook = _unraisable
    try:
        _run()
    except KeyboardInterrupt:
        _end_interrupted()


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that meets a callback of the interpreter, which would drop it and go on."""
    if unraisable.exc_type is KeyboardInterrupt:
        _end_interrupted()
    sys.__unraisablehook__(unraisable)


def _end_interrupted() -> NoReturn:
    sys.stderr.write("ckpt: interrupted\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


def _run() -> None:
    if sys.argv[1:] in (["--help"], ["-h"]) and _plain_terminal():
        # What click would print, saved: importing click takes longer than everything else.
        with open(_HELP, encoding="utf-8") as file:
            _print(file.read())
        return
    import signal

    # What a batch system sends ends a command as Ctrl-C does, with what is finished kept.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Looking for plugins of pydantic costs more than a saved result takes to print.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from ckptforensics.cli.main import main
    from ckptforensics.errors import ExitCode

    code = main()
    if code == ExitCode.INTERRUPTED:
        # An interrupt that met an import inside a C extension makes Python end itself by the
        # signal, whatever is returned; and nobody wants to wait for threads.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; what Python would flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain_terminal() -> bool:
    """No shell that asks for completions, and no terminal that the saved help is too wide for."""
    if "_CKPT_COMPLETE" in os.environ:
        return False
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns >= _HELP_WIDTH
    except (OSError, ValueError):  # not a terminal
        return "COLUMNS" not in os.environ
