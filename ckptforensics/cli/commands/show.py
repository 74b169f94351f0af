"""`ckpt show`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import Output, output_options
from ckptforensics.render import FORMATS


@click.command("show")
@click.argument("result", type=click.Path(path_type=Path))
@output_options(None, forms=FORMATS)
def command(result: Path, form: str, quiet: bool, verbose: bool, no_progress: bool) -> None:
    """Render a saved result again, without computing anything.

    RESULT is a file written with -o: a signature (.safetensors) or a document (.json). Only a
    comparison can be shown as csv or html.
    """
    from ckptforensics.results import load_document

    Output(form, None, quiet, verbose, not no_progress).emit(load_document(result))
