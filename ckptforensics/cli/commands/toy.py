"""`ckpt toy`: a group whose commands are imported when they are run."""

from __future__ import annotations

from types import MappingProxyType

import click

from ckptforensics.cli.groups import LazyGroup

# Command to what it is for, as in `cli.main`.
_COMMANDS = MappingProxyType(
    {
        "train": "Train a small network, or go on with a run.",
        "report": "Show what runs show, beside what is published.",
    }
)


@click.group("toy", cls=LazyGroup, lines=_COMMANDS)
def command() -> None:
    """Train small networks and watch extreme tokens appear.

    A task small enough to be learnt on two cores in minutes shows attention sinks, drained values
    and residual peaks (arXiv 2410.13835); its checkpoints are read by every weight-only command.
    """
