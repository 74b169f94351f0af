"""Groups whose commands are imported when they are run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Command N of group G is `cli/commands/G_N.py`.

    Parameters
    ----------
    lines : command to what it is for, in one line
    """

    def __init__(self, *arguments: Any, lines: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lines = lines

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in their order."""
        return list(self._lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is no such."""
        if cmd_name not in self._lines:
            return None
        module = import_module(f"ckptforensics.cli.commands.{self.name}_{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lines, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines.items()))
