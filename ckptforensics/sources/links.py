"""Links inside a model's directory: a download must not make any other file be read."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from ckptforensics.errors import FormatError


def refuse_links_out(folder: Path, files: Iterable[Path]) -> None:
    """FormatError if a file is a link that leads nowhere, or out of the directory of the model.

    The directory itself may be a link, and links to the blobs of the same repository in the Hugging
    Face cache are how this cache is made.
    """
    home = folder.resolve()
    # <repository>/snapshots/<commit> beside <repository>/blobs
    cache = next((p.parent / "blobs" for p in home.parents if p.name == "snapshots"), home)
    for file in files:
        if not file.is_symlink():
            continue
        if not file.exists():
            raise FormatError(
                "the link leads nowhere",
                path=file,
                hint="fetch the file it names, or remove the link",
            )
        target = file.resolve()
        if not target.is_relative_to(home) and not target.is_relative_to(cache):
            raise FormatError(
                f"the link leads out of the model's directory, to {target}",
                path=file,
                hint=f"if you trust it, copy the file there: cp --remove-destination "
                f"{shlex.quote(str(target))} {shlex.quote(str(file))}",
            )
