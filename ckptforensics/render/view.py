"""How a result is to be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """What a renderer may heed besides the document.

    Attributes
    ----------
    verbose : show every row instead of the noteworthy ones (tables only)
    width : of the terminal in columns; None where there is none
    color : use ANSI styles
    """

    verbose: bool = False
    width: int | None = None
    color: bool = False
