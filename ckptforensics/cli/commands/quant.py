"""`ckpt quant`: a group whose commands are imported when they are run."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType

import click

# Command to what it is for, as in `cli.main`.
_COMMANDS = MappingProxyType(
    {
        "plan": "Plan which modules to keep in 16 bits, from the weights.",
        "eval": "Evaluate ways to quantize it on a text (needs torch).",
        "diff": "Compare a quantized copy with its source, tensor by tensor.",
    }
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"ckptforensics.cli.commands.quant_{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group("quant", cls=_LazyGroup)
def command() -> None:
    """Plan, evaluate and compare quantization.

    Per-tensor int8 fails where one token's activations set the scale of all others. The weights
    tell in which modules that happens.
    """
