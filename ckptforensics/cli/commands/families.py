"""`ckpt families`."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.options import Output, output_options


@click.command("families")
@output_options("Save the result as JSON.")
def command(form: str, output: Path | None, quiet: bool, verbose: bool, no_progress: bool) -> None:
    """List the supported families of architectures and how each was verified."""
    from ckptforensics.findings import list_families

    out = Output(form, output, quiet, verbose, not no_progress)
    document = list_families()
    out.save(document)
    out.emit(document)
