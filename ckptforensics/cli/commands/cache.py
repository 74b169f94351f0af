"""`ckpt cache`."""

from __future__ import annotations

import click

from ckptforensics.cli.options import Output, output_options


@click.group("cache")
def command() -> None:
    """Show or clear the cache of signatures, which makes a second 'ckpt sign' instant."""


@command.command("info")
@output_options(None)
def info(form: str, quiet: bool, verbose: bool, no_progress: bool) -> None:
    """Show where signatures are kept, how many, and their bound."""
    from ckptforensics.findings import SignatureCache, cache_info

    Output(form, None, quiet, verbose, not no_progress).emit(cache_info(SignatureCache.of_user()))


@command.command("clear")
@output_options(None)
def clear(form: str, quiet: bool, verbose: bool, no_progress: bool) -> None:
    """Remove all signatures kept and all unfinished runs, and show what is left."""
    from ckptforensics.findings import SignatureCache, cache_info

    out = Output(form, None, quiet, verbose, not no_progress)
    cache = SignatureCache.of_user()
    before = cache_info(cache)
    if cache is not None:
        cache.clear()
    out.hint(f"removed {before.entries} signatures and {before.unfinished} unfinished runs")
    out.emit(cache_info(cache))
