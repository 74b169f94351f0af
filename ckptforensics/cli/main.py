"""Entry point of `ckpt`: lazy commands, and every failure as one line with its exit code."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from types import MappingProxyType
from typing import Any

import click

from ckptforensics.errors import CkptError, ExitCode, exit_code, one_line
from ckptforensics.version import __version__

# Command to what it is for, in one line: `ckpt --help` must not import what it does not run.
_SECTIONS = MappingProxyType(
    {
        "From the weights": {
            "sign": "Sign a checkpoint: its singular defect directions, layer by layer.",
            "layers": "Find explosion and decay layers, each with its evidence.",
            "compare": "Compare checkpoints: whether they share a training run, and how.",
            "evolve": "Follow norms and defect directions from checkpoint to checkpoint.",
            "norms": "Roll single tokens through the network and show their norms.",
            "report": "Put what the weights and the running model show onto one page.",
            "inspect": "Show family, shapes and files; what is read and what is not.",
            "quant": "Plan, evaluate and compare quantization.",
        },
        "Many models": {
            "audit": "Audit a registry: claims against weights, and what was not read.",
            "find": "Find whose copy a model is, among all models of a catalog.",
            "sketch": "Sketch a model: a small record by which a copy is found.",
            "catalog": "Look at the catalog of models, add to it, share it.",
            "serve": "Serve a local web page over a catalog.",
        },
        "Running the model (needs torch and transformers)": {
            "trace": "Run a text and show the norm of every token after every layer.",
            "empirical": "Find the tokens of high norm in running text.",
            "paths": "Roll the vocabulary through the network, and see what triggers.",
            "ablate": "Take one thing away at a time: norms, perplexity, text.",
            "sinks": "Show which heads attend to the first token.",
            "replicate": "Measure what is published of a model, beside the published figures.",
            "toy": "Train small networks and watch extreme tokens appear.",
        },
        "Help": {
            "families": "List the supported families and how each was verified.",
            "show": "Render a saved result again.",
            "explain": "Explain a rule of audits, or one finding with its evidence.",
            "cache": "Show or clear the cache of signatures.",
        },
    }
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in _SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"ckptforensics.cli.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as problem:
            from difflib import get_close_matches

            # click itself looks among the commands that are imported, which are none.
            close = get_close_matches(args[0], self.list_commands(ctx), n=1)
            meant = "".join(f" Did you mean '{name}'?" for name in close)
            raise click.UsageError(problem.message + meant, ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # One column for the names of all sections.
        longest = max(map(len, self.list_commands(ctx)))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), text) for name, text in commands.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckpt")
def cli() -> None:
    """Tell from a checkpoint's weights alone what a language model is.

    MODEL is a directory with config.json and weights, one .safetensors, .bin, .pt, .pth or .gguf
    file, an index of shards, org/name[@revision] on the Hugging Face Hub, or a URL such as
    s3://bucket/x. Pickles are never executed. Results go to stdout, progress and hints to stderr.

    Exit codes: 0 done, 1 findings of --fail-on, 2 analysis error, 3 nothing analysable, 4 usage.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run `ckpt` and return its exit code."""
    with warnings.catch_warnings():
        # What overflows is told by an error or a null; NumPy would write its own source to stderr.
        if not sys.warnoptions:
            warnings.simplefilter("ignore", RuntimeWarning)
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    try:
        given = tuple(sys.argv[1:] if arguments is None else arguments)
        result: Any = cli.main(
            args=arguments, prog_name="ckpt", standalone_mode=False, obj=("ckpt", *given)
        )
        return result if isinstance(result, int) else ExitCode.DONE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as problem:
        click.echo(problem.format_message(), err=True)
        return ExitCode.USAGE
    except click.ClickException as problem:
        command = problem.ctx.command_path if getattr(problem, "ctx", None) else "ckpt"  # type: ignore[attr-defined]
        return _fail(f"{problem.format_message()} (see '{command} --help')", ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except CkptError as problem:
        return _fail(str(problem), exit_code(problem))
    except SystemExit:
        # What click makes of a broken pipe. The reader has gone and nothing is left to say.
        return ExitCode.DONE
    except MemoryError:
        return _fail("out of memory", ExitCode.ERROR)
    except Exception as problem:
        if os.environ.get("CKPT_TRACEBACK"):
            raise
        return _fail(
            f"internal error: {type(problem).__name__}: {problem}; "
            "set CKPT_TRACEBACK=1 to see where, and report it",
            ExitCode.ERROR,
        )


def _fail(message: str, code: ExitCode) -> ExitCode:
    click.echo("ckpt: error: " + one_line(" ".join(message.split("\n"))), err=True)
    return code
