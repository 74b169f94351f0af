"""`ckpt quant`: a group whose commands are imported when they are run."""

from __future__ import annotations

from types import MappingProxyType

import click

from ckptforensics.cli.groups import LazyGroup

# Command to what it is for, as in `cli.main`.
_COMMANDS = MappingProxyType(
    {
        "plan": "Plan which modules to keep in 16 bits, from the weights.",
        "eval": "Evaluate ways to quantize it on a text (needs torch).",
        "diff": "Compare a quantized copy with its source, tensor by tensor.",
    }
)


@click.group("quant", cls=LazyGroup, lines=_COMMANDS)
def command() -> None:
    """Plan, evaluate and compare quantization.

    Per-tensor int8 fails where one token's activations set the scale of all others. The weights
    tell in which modules that happens.
    """
