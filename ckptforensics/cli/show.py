"""`ckpt show`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.common import Output, output_options


@click.command("show")
@click.argument("result", type=click.Path(path_type=Path))
@output_options(None)
def command(result: Path, form: str, quiet: bool, verbose: bool, no_progress: bool) -> None:
    """Render a saved result again, without computing anything.

    RESULT is a file written with -o: a signature (.safetensors) or a document (.json).
    """
    from ckptforensics.results import Signature, load_result

    loaded = load_result(result)
    document = loaded.document if isinstance(loaded, Signature) else loaded
    Output(form, None, quiet, verbose, not no_progress).emit(document)
