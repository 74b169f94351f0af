"""Every failure a user can cause, as one family of exceptions with data fields.

The message of an error is one line: what is wrong, where (file, tensor, byte) and what to do.
`exit_code` maps a class to the exit code of the command line.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_QUOTE = 1000


class ExitCode(IntEnum):
    """What `ckpt` tells the program that started it."""

    DONE = 0
    FINDINGS = 1
    """What `--fail-on` asks about was found."""
    ERROR = 2
    """The analysis failed."""
    NOTHING = 3
    """There is no model that can be analysed."""
    USAGE = 4
    """The command cannot be meant as it was written."""
    INTERRUPTED = 130
    """As shells report a program that an interrupt has ended."""


class CkptError(Exception):
    """Base of all errors raised on purpose; catching it catches every failure of the input.

    Attributes
    ----------
    message : what is wrong, without the place
    path : file or directory concerned, if any
    tensor : name of the tensor concerned, if any
    offset : byte offset in `path`, if any
    hint : what the user can do about it, if anything
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        from pathlib import Path  # here, since `ckpt --help` needs the class and no path

        self.message = message
        self.path = Path(path) if isinstance(path, str) else path
        self.tensor = tensor
        self.offset = offset
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        place = []
        if self.path is not None:
            place.append(str(self.path))
        if self.tensor is not None:
            place.append(f"tensor '{_shortened(self.tensor)}'")
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        message = _shortened(self.message)
        text = f"{', '.join(place)}: {message}" if place else message
        if self.hint:
            text = f"{text}; {self.hint}"
        return one_line(text)


class UsageError(CkptError):
    """The command was asked for something that cannot be meant: a wrong path, token or option."""


class NothingAnalysable(CkptError):
    """The input holds no language model, or none that can be analysed."""


class NotApplicable(CkptError):
    """A criterion cannot judge this pair of models; the message is the reason why it is skipped."""


class UnknownFamily(NothingAnalysable):
    """Neither the configuration nor the tensor names match a known architecture."""


class FormatError(CkptError):
    """A file breaks the rules of its container format."""


class NotFetched(FormatError):
    """A file only stands for one that was not downloaded, or one that an index names is missing."""


class UnsafePickle(FormatError):
    """A pickle asks for what no state dict needs: to load it elsewhere could run a program."""


class TensorError(CkptError):
    """A tensor is missing, has the wrong shape or an element type that cannot be decoded."""


class NotFinite(TensorError):
    """A weight is NaN or infinite."""


class ResultError(CkptError):
    """A saved result cannot be read as one, or was written by an incompatible version."""


class MissingDependency(CkptError):
    """An optional package is needed for this input and is not installed."""


class OutputError(CkptError):
    """A result cannot be written."""


_EXIT_CODES = MappingProxyType(
    {
        CkptError: ExitCode.ERROR,
        UsageError: ExitCode.USAGE,
        NothingAnalysable: ExitCode.NOTHING,
    }
)


def one_line(text: str) -> str:
    """`text` with line breaks, control sequences and all else unprintable spelled as escapes.

    File and tensor names come from the input: nothing in them may break the promise of one line
    or reach a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def exit_code(error: CkptError) -> ExitCode:
    """Exit code of the command line for `error`: that of its nearest listed base class."""
    codes = (_EXIT_CODES.get(c) for c in type(error).__mro__ if issubclass(c, CkptError))
    return next(code for code in codes if code is not None)


def _shortened(text: str) -> str:
    """A value quoted from the input may be a whole file: its beginning says enough."""
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + " ..."
