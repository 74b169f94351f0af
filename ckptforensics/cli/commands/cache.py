"""`ckpt cache`."""

from __future__ import annotations

import click

from ckptforensics.cli.output import OutputOptions, output_options


@click.group("cache")
def command() -> None:
    """Show or clear the cache of signatures, which makes a second 'ckpt sign' instant."""


@command.command("info")
@output_options(None)
def info(out: OutputOptions) -> None:
    """Show where signatures are kept, how many, and their bound."""
    from ckptforensics.findings import SignatureCache, cache_info

    out.emit(cache_info(SignatureCache.of_user()))


@command.command("clear")
@output_options(None)
def clear(out: OutputOptions) -> None:
    """Remove all signatures kept and all unfinished runs, and show what is left."""
    from ckptforensics.findings import SignatureCache, cache_info

    cache = SignatureCache.of_user()
    before = cache_info(cache)
    if cache is not None:
        cache.clear()
    out.hint(f"removed {before.entries} signatures and {before.unfinished} unfinished runs")
    out.emit(cache_info(cache))
