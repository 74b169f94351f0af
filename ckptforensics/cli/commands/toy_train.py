"""`ckpt toy train`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ckptforensics.cli.options import Between, as_object
from ckptforensics.cli.output import OutputOptions, output_options
from ckptforensics.errors import UsageError

if TYPE_CHECKING:
    from ckptforensics.runtime.toy.network import Shape
    from ckptforensics.runtime.toy.recipes import Recipe, Task


@dataclass(frozen=True)
class NetworkOptions:
    """What the network is built like; None takes what is usual for the task."""

    layers: int | None
    width: int | None
    heads: int | None
    context: int | None
    attention: Literal["softmax", "relu"]
    positions: Literal["learned", "rope", "alibi", "none"] | None
    mask: Literal["causal", "bidirectional"] | None
    attention_window: int | None
    residual: Literal["sequential", "parallel"] | None
    sinks: bool
    gated: bool
    qk_norm: bool

    def shape(self, task: str, vocabulary: int) -> Shape:
        """The network; UsageError if the options do not go together."""
        from ckptforensics.runtime.toy.report import plain_shape

        own = {
            "positions": self.positions,
            "mask": self.mask,
            "window": self.attention_window,
            "residual": self.residual,
            "sinks": self.sinks or None,
            "gated": self.gated or None,
            "qk_norm": self.qk_norm or None,
        }
        chosen: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        if task == "bigram-backcopy" and chosen:
            name = next(iter(chosen)).replace("window", "attention_window").replace("_", "-")
            raise UsageError(
                f"--{name} is of --task language",
                hint="the Bigram-Backcopy task is that of the publication",
            )
        sizes = {
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "context": self.context,
        }
        chosen |= {name: value for name, value in sizes.items() if value is not None}
        shape = replace(plain_shape(task, vocabulary), attention=self.attention, **chosen)
        if shape.width % shape.heads:
            raise UsageError(
                f"{shape.heads} heads do not share a width of {shape.width}",
                hint="change --width or --heads",
            )
        if shape.positions == "rope" and shape.head_width % 2:
            raise UsageError(
                f"rotary positions need heads of an even width, not {shape.head_width}",
                hint="change --width or --heads, or choose other --positions",
            )
        if shape.sinks and shape.attention == "relu":
            raise UsageError("--sinks is an option of softmax attention", hint="leave it out")
        if shape.sinks and shape.qk_norm:
            # Of such a network the weight-only tools would take the sinks' share for another one.
            raise UsageError("--sinks and --qk-norm do not go together", hint="leave one out")
        return shape


network_options = as_object(
    NetworkOptions,
    "network",
    click.option("--layers", type=click.IntRange(1, 64), help="Blocks.  [default: 1; language: 4]"),
    click.option(
        "--width",
        type=click.IntRange(2, 8192),
        help="Residual width.  [default: 256; language: 96]",
    ),
    click.option(
        "--heads", type=click.IntRange(1, 128), help="Heads a block.  [default: 1; language: 4]"
    ),
    click.option(
        "--context",
        type=click.IntRange(8, 1024),
        help="Tokens of a sequence.  [default: 256; language: 128]",
    ),
    click.option(
        "--attention",
        type=click.Choice(["softmax", "relu"]),
        default="softmax",
        show_default=True,
        help="Softmax, or ReLU of the scores over the number of keys.",
    ),
    click.option(
        "--positions",
        type=click.Choice(["learned", "rope", "alibi", "none"]),
        help="Language: what tells places apart.  [default: rope]",
    ),
    click.option(
        "--mask",
        type=click.Choice(["causal", "bidirectional"]),
        help="Language: which keys a query sees.  [default: causal]",
    ),
    click.option(
        "--attention-window", type=click.IntRange(1), help="Language: keys back that a query sees."
    ),
    click.option(
        "--residual",
        type=click.Choice(["sequential", "parallel"]),
        help="Language: branches behind or beside each other.  [default: sequential]",
    ),
    click.option("--sinks", is_flag=True, help="Language: a learned logit a head."),
    click.option("--gated", is_flag=True, help="Language: a sigmoid gate behind the heads."),
    click.option("--qk-norm", is_flag=True, help="Language: norms of queries and keys."),
)


@dataclass(frozen=True)
class RunOptions:
    """How the network is trained, and what is kept."""

    task: Literal["bigram-backcopy", "language"]
    text_file: Path | None
    start: Path | None
    optimizer: str
    rate: float | None
    steps: int
    batch: int | None
    seed: int
    log_every: int
    save_every: int
    dtype: str
    threads: int | None
    device: str
    compiled: bool

    def task_of(self) -> Task:
        """The task on its text."""
        from ckptforensics.runtime.texts import Text, words_of
        from ckptforensics.runtime.toy.language import LanguageTask
        from ckptforensics.runtime.toy.measures import BigramTask
        from ckptforensics.runtime.toy.statistics import statistics

        if self.task == "language":
            return LanguageTask(*words_of(Text(file=self.text_file)))
        return BigramTask(statistics(self.text_file))

    def recipe(self, shape: Shape) -> Recipe:
        """The recipe of the publication, or of the language models, but for what is given."""
        from ckptforensics.runtime.toy.recipes import Recipe, usual_rate

        rate = self.rate or usual_rate(self.task, shape, self.optimizer)
        if self.task == "language":
            return Recipe(
                self.optimizer, rate, 0.1, 1.0, 100, self.batch or 8, self.seed, self.dtype
            )
        return Recipe(
            self.optimizer, rate, batch=self.batch or 32, seed=self.seed, dtype=self.dtype
        )


run_options = as_object(
    RunOptions,
    "how",
    click.option(
        "--task",
        type=click.Choice(["bigram-backcopy", "language"]),
        default="bigram-backcopy",
        show_default=True,
        help="What is learnt.",
    ),
    click.option(
        "--text-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="UTF-8 text.  [default: counts of Shakespeare's plays; language: Python's help]",
    ),
    click.option(
        "--from",
        "start",
        type=click.Path(path_type=Path),
        help="Begin with the weights of this checkpoint: a fine-tune.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "sgd"]),
        default="adamw",
        show_default=True,
        help="How the weights follow the gradient.",
    ),
    click.option(
        "--rate",
        type=Between(0, min_open=True),
        help="Learning rate.  [default: 3e-4, SGD .03, ReLU with 1 layer 3e-3; language: 3e-3, .3]",
    ),
    click.option("--steps", type=click.IntRange(0), default=1000, show_default=True, help="Steps."),
    click.option(
        "--batch", type=click.IntRange(1), help="Sequences a step.  [default: 32; language: 8]"
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Draws the first weights and the sequences.",
    ),
    click.option(
        "--log-every",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        help="Steps between two measurements.",
    ),
    click.option(
        "--save-every",
        type=click.IntRange(1),
        default=500,
        show_default=True,
        help="Steps between two checkpoints.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["F32", "BF16"]),
        default="F32",
        show_default=True,
        help="Element type of the checkpoints.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads of torch.  [default: all]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 or mps."),
    click.option("--compile", "compiled", is_flag=True, help="Compile it (needs a C++ compiler)."),
)


@click.command("train")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run; one that holds a run goes on with it.",
)
@run_options
@network_options
@output_options(None, kind="toy")
def command(folder: Path, how: RunOptions, network: NetworkOptions, out: OutputOptions) -> None:
    """Train a small network, or go on with a run.

    DIR gets log.jsonl, a line a measured step, and checkpoints that every weight-only command
    reads. A run that was interrupted goes on with the same command, and ends with the same bits;
    a larger --steps makes it longer.
    """
    from ckptforensics.runtime.toy.recipes import Schedule
    from ckptforensics.runtime.toy.report import report
    from ckptforensics.runtime.toy.saved import STATE
    from ckptforensics.runtime.toy.training import train

    task = how.task_of()
    shape = network.shape(how.task, task.vocabulary)
    try:
        run = train(
            task,
            shape,
            how.recipe(shape),
            Schedule(how.steps, how.log_every, how.save_every),
            folder,
            start=how.start,
            threads=how.threads,
            device=how.device,
            compiled=how.compiled,
            progress=out.progress(),
            show=lambda line: out.hint(_shown(line)),
        )
    except KeyboardInterrupt:
        if (folder / STATE).exists():
            out.hint("what was trained is saved: the same command goes on with it")
        raise
    longest = max(run.checkpoints(), default=0)
    if longest > how.steps:
        out.hint(f"the run has {longest:,} steps already: a larger --steps makes it longer")
    text = how.text_file if how.task == "bigram-backcopy" else None
    out.emit(report([folder], text=text))


def _shown(line: dict[str, Any]) -> str:
    """A line of the log, in short."""
    words = [f"step {line['step']:,}", f"loss {line['loss']:.3f}"]
    if "excess_trigger" in line:
        words.append(f"excess {line['excess_trigger']:.3f} behind triggers")
        words.append(f"{line['excess_other']:.3f} elsewhere")
    words.append(f"attention to first {max(line['attention']):.2f}")
    words.append(
        f"its norm {max(line['residual_norm']):.1f} (others {max(line['others_norm']):.1f})"
    )
    return ", ".join(words)
