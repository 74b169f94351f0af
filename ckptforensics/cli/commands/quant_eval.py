"""`ckpt quant eval`."""

from __future__ import annotations

import click

from ckptforensics.errors import UsageError


@click.command("eval")
def command() -> None:
    """Evaluate ways to quantize it on a text (needs torch)."""
    raise UsageError("'ckpt quant eval' is not in this version", hint="see 'ckpt quant plan'")
