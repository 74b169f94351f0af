"""`ckpt toy`: a group whose commands are imported when they are run."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType

import click

# Command to what it is for, as in `cli.main`.
_COMMANDS = MappingProxyType(
    {
        "train": "Train a small network, or go on with a run.",
        "report": "Show what runs show, beside what is published.",
    }
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"ckptforensics.cli.commands.toy_{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group("toy", cls=_LazyGroup)
def command() -> None:
    """Train small networks and watch extreme tokens appear.

    A task small enough to be learnt on two cores in minutes shows attention sinks, drained values
    and residual peaks (arXiv 2410.13835); its checkpoints are read by every weight-only command.
    """
