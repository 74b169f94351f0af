"""`ckpt families`."""

from __future__ import annotations

import click

from ckptforensics.cli.output import OutputOptions, output_options


@click.command("families")
@output_options("Save the result as JSON.", kind="families")
def command(out: OutputOptions) -> None:
    """List the supported families of architectures and how each was verified."""
    from ckptforensics.findings import list_families

    document = list_families()
    out.save(document)
    out.emit(document)
