"""`ckpt catalog`: what audits keep of models, to look at, to share and to take from others."""

from __future__ import annotations

from pathlib import Path

import click

from ckptforensics.cli.commands.audit import default_catalog
from ckptforensics.cli.options import memory_option, offline_option, workers_option
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.errors import ExitCode, one_line

catalog_option = click.option(
    "--catalog",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The catalog's file.  [default: the user's own]",
)


@click.group("catalog")
def command() -> None:
    """Look at the catalog of models, add to it, share it, or take in another's.

    Signatures of well-known base models, once imported, let every later audit compare with them.
    """


@command.command("add")
@click.argument("sources", metavar="MODEL...", nargs=-1, required=True)
@catalog_option
@workers_option("Models")
@memory_option
@offline_option
@output_options(None, kind="catalog")
def add(
    sources: tuple[str, ...],
    catalog: Path | None,
    workers: int,
    memory: int | None,
    offline: bool,
    out: OutputOptions,
) -> int:
    """Sketch models, or all models of a store, so that 'ckpt find' knows them.

    MODEL is what 'ckpt audit' takes. Models that are in the catalog already and have not changed
    are left as they are. Nothing is signed, compared or judged: 'ckpt audit' does.
    """
    from ckptforensics.jobs.memory import default_memory
    from ckptforensics.registry.audit import add_models
    from ckptforensics.registry.catalog.contents import catalog_document
    from ckptforensics.registry.options import AuditOptions

    options = AuditOptions(
        catalog=catalog or default_catalog(),
        workers=workers,
        memory=memory or default_memory(),
        weights=False,
        offline=offline,
    )
    added = add_models(sources, options, progress=out.progress())
    for name, reason in added.failed:
        click.echo(f"ckpt: {one_line(f'{name}: {reason}')}", err=True)
    out.hint(f"{added.sketched} of {added.models} models have sketches")
    out.emit(catalog_document(options.catalog))
    return ExitCode.NOTHING if not added.sketched else ExitCode.DONE


@command.command("info")
@catalog_option
@output_options(None, kind="catalog")
def info(catalog: Path | None, out: OutputOptions) -> None:
    """Show how much the catalog holds."""
    from ckptforensics.registry.catalog.contents import catalog_document

    out.emit(catalog_document(catalog or default_catalog()))


@command.command("list")
@catalog_option
@output_options("Save the list as JSON.", kind="catalog")
def list_(catalog: Path | None, out: OutputOptions) -> None:
    """List the models."""
    from ckptforensics.registry.catalog.contents import catalog_document

    document = catalog_document(catalog or default_catalog(), models=True)
    out.save(document)
    out.emit(document)


@command.command("export")
@click.argument("output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("names", metavar="[NAME]...", nargs=-1)
@catalog_option
@click.option("-q", "--quiet", is_flag=True, help="No hints.")
def export(output: Path, names: tuple[str, ...], catalog: Path | None, quiet: bool) -> None:
    """Write the signatures of all models, or of those named, to one portable file."""
    from ckptforensics.registry.catalog.portable import export_catalog

    count = export_catalog(catalog or default_catalog(), output, names=names)
    if not quiet:
        click.echo(f"{count} models written to {output}", err=True)


@command.command("import")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@catalog_option
@output_options(None, kind="catalog")
def import_(files: tuple[Path, ...], catalog: Path | None, out: OutputOptions) -> None:
    """Take the models of exported files in, whose digests are verified."""
    from ckptforensics.registry.catalog.contents import catalog_document
    from ckptforensics.registry.catalog.portable import import_catalog
    from ckptforensics.registry.catalog.writer import open_writer

    path = catalog or default_catalog()
    with open_writer(path) as writer:
        for file in files:
            out.hint(f"{import_catalog(writer, file)} models taken from {file}")
    out.emit(catalog_document(path))


@command.command("vacuum")
@catalog_option
@output_options(None, kind="catalog")
def vacuum(catalog: Path | None, out: OutputOptions) -> None:
    """Remove signatures and sketches that no model has, and give the room back."""
    from ckptforensics.registry.catalog.contents import catalog_document
    from ckptforensics.registry.catalog.contents import vacuum as vacuum_catalog

    path = catalog or default_catalog()
    out.hint(f"{vacuum_catalog(path):,} bytes given back")
    out.emit(catalog_document(path))
