"""One training run: its folder, its log, and how it goes on where it stopped.

A run's folder holds `settings.json`, `log.jsonl` (a line a measured step), `checkpoint-N/` (a model
that the weight-only commands read) and `state.safetensors`, from which the run goes on with the
same bits: batches are drawn from the seed and the step alone.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from ckptforensics.errors import FormatError, OutputError, UsageError
from ckptforensics.progress import Progress, running
from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy.network import Shape, new_tensors, run

SETTINGS, LOG, STATE = "settings.json", "log.jsonl", "state.safetensors"
# Beside the seed, for what is drawn to measure: no run has a step of this number.
NO_STEP = 2**40


@dataclass(frozen=True)
class Recipe:
    """All that a run's bits depend on, besides the task and the number of threads.

    Attributes
    ----------
    optimizer : `adamw` (betas .9 and .99) or `sgd` (momentum .9)
    rate : learning rate, constant; the language task's rises over the first 100 steps
    decay : weight decay
    clip : largest norm of the gradient, None for any
    batch : sequences a step
    seed : of the random weights and of the sequences
    dtype : element type of the saved checkpoints, `F32` or `BF16`
    """

    optimizer: str = "adamw"
    rate: float = 3e-4
    decay: float = 1e-4
    clip: float | None = None
    warm_up: int = 0
    batch: int = 32
    seed: int = 0
    dtype: str = "F32"


class Task(Protocol):
    """What is learnt: batches, and what is measured beside them.

    Attributes
    ----------
    name : `bigram-backcopy` or `language`
    text : name of the text
    digest : SHA-256 of what is drawn from it
    model_type : of the family that reads the checkpoints
    begin : id of the token that begins a sequence
    """

    name: str
    text: str
    digest: str
    model_type: str
    begin: int

    @property
    def vocabulary(self) -> int:
        """Tokens."""

    def batch(self, shape: Shape, recipe: Recipe, step: int) -> tuple[Any, Any]:
        """Inputs and targets of a step, (B, T) each, as arrays; targets of -100 do not count."""

    def measure(self, shape: Shape, tensors: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What the log says of a network, `loss` first."""

    def tokenizer(self) -> str:
        """Content of `tokenizer.json`."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and how often it is measured and saved, in steps."""

    steps: int
    log_every: int = 20
    save_every: int = 500


@dataclass(frozen=True)
class Saved:
    """A run on disk.

    Attributes
    ----------
    folder : where it is
    task, text : of `settings.json`, with
    start : the checkpoint that it began from, if any
    log : the lines of `log.jsonl`
    """

    folder: Path
    task: str
    text: str
    start: str | None
    shape: Shape
    recipe: Recipe
    threads: int
    versions: dict[str, str]
    log: list[dict[str, Any]]

    def checkpoints(self) -> dict[int, Path]:
        """Step to folder, in order."""
        found = {}
        for path in self.folder.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if number.isascii() and number.isdecimal():
                found[int(number)] = path
        return dict(sorted(found.items()))


def update(
    loss: Any,
    optimizer: Any,
    *,
    clip: float | None = None,
    schedule: Any = None,
) -> None:
    """One step down the gradient of `loss`.

    Parameters
    ----------
    clip : largest norm of the gradient of all the optimizer's tensors
    schedule : of the learning rate, is told of the step
    """
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        libraries.torch().nn.utils.clip_grad_norm_(tensors, clip)
    optimizer.step()
    if schedule is not None:
        schedule.step()


def rounded(value: Any) -> float:
    """A tensor of one element to six digits: what a log needs."""
    return float(f"{float(value):.6g}")


def train(
    task: Task,
    shape: Shape,
    recipe: Recipe,
    schedule: Schedule,
    folder: Path,
    *,
    start: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    compiled: bool = False,
    progress: Progress | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> Saved:
    """Train a network, or go on with the run that is in the folder.

    On one machine, with the same versions and number of threads, a run ends with the same bits,
    interrupted or not.

    Parameters
    ----------
    folder : made if it is not there
    start : a checkpoint of another run, whose weights are taken in place of random ones
    threads : of torch; None for all cores
    compiled : torch.compile the network, which needs a C++ compiler
    show : is told each line of the log

    Raises
    ------
    UsageError
        if the folder holds a run with other settings, `start` is of another shape, or the device
        cannot be used.
    FormatError
        if a file of the run is damaged.
    """
    torch = libraries.torch()
    libraries.usable_device(device)
    wanted = _described(task, shape, recipe, start, threads or os.cpu_count() or 1)
    _claim(folder, wanted)
    with _deterministic(wanted["threads"]):
        tensors = new_tensors(shape, recipe.seed, device)
        if start is not None:
            _take(tensors, start, device)
        optimizer = _optimizer(recipe, tensors)
        done, seconds = _resume(folder / STATE, tensors, optimizer, device)
        _cut(folder / LOG, done)
        forward = torch.compile(run) if compiled else run
        begun = time.monotonic() - seconds

        def keep(step: int) -> None:
            _keep(folder / STATE, tensors, optimizer, step, time.monotonic() - begun)

        steps = max(schedule.steps - done, 0)
        with _stops() as stopped, running(progress, "training", steps) as tell:
            for step in range(done, schedule.steps + 1):
                last = step == schedule.steps
                if step % schedule.log_every == 0 or last:
                    line = {"step": step, "seconds": round(time.monotonic() - begun, 2)}
                    line |= task.measure(shape, tensors, recipe.seed)
                    _append(folder / LOG, line)
                    if show is not None:
                        show(line)
                if step % schedule.save_every == 0 or last:
                    _save(task, shape, recipe, tensors, folder / f"checkpoint-{step}")
                    keep(step)
                if last:
                    break
                if stopped():
                    keep(step)
                    raise KeyboardInterrupt
                _set_rate(optimizer, recipe, step)
                inputs, targets = task.batch(shape, recipe, step)
                logits = forward(shape, tensors, torch.from_numpy(inputs).to(device))
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), torch.from_numpy(targets).to(device).flatten()
                )
                update(loss, optimizer, clip=recipe.clip)
                tell(f"step {step + 1:,}")
    return read(folder)


def read(folder: Path) -> Saved:
    """A run on disk; UsageError if there is none, FormatError if its files are damaged."""
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text("utf-8"))
        lines = (folder / LOG).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            "no training run is there", path=folder, hint="name a folder that ckpt toy train wrote"
        ) from None
    except ValueError:
        raise FormatError("the run's settings are no JSON", path=path) from None
    try:
        log = [json.loads(line) for line in lines]
    except ValueError:
        raise FormatError("a line of the log is no JSON", path=folder / LOG) from None
    try:
        return Saved(
            folder,
            str(found["task"]),
            str(found["text"]),
            found["start"],
            _built(Shape, found["shape"]),
            _built(Recipe, found["recipe"]),
            int(found["threads"]),
            {str(k): str(v) for k, v in found["versions"].items()},
            [line for line in log if isinstance(line, dict)],
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise FormatError(
            f"the run's settings are not those of a run: {problem}", path=path
        ) from None


def load(saved: Saved, step: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Tensors of a checkpoint, the last by default, in float32; UsageError if there is none."""
    checkpoints = saved.checkpoints()
    if not checkpoints or (step is not None and step not in checkpoints):
        raise UsageError("the run has no such checkpoint", path=saved.folder)
    tensors = {
        name: tensor.detach() for name, tensor in new_tensors(saved.shape, 0, device).items()
    }
    _take(tensors, checkpoints[max(checkpoints) if step is None else step], device)
    return tensors


def _built(kind: type, values: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


def _described(
    task: Task, shape: Shape, recipe: Recipe, start: Path | None, threads: int
) -> dict[str, Any]:
    import platform

    versions = {"python": platform.python_version(), "torch": libraries.torch().__version__}
    return {
        "task": task.name,
        "text": task.text,
        "sha256": task.digest,
        "start": None if start is None else str(start),
        "shape": asdict(shape),
        "recipe": asdict(recipe),
        "threads": threads,
        "versions": versions,
    }


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the settings, or see that those which are there are the same."""
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = json.loads(path.read_text("utf-8"))
        else:
            if any(folder.iterdir()):
                raise UsageError(
                    "the folder holds something else", path=folder, hint="name a new folder"
                )
            _write(path, (json.dumps(wanted, indent=1) + "\n").encode())
            return
    except ValueError:
        raise FormatError("the run's settings are no JSON", path=path) from None
    except OSError as problem:
        raise OutputError(f"cannot write the run: {problem.strerror}", path=folder) from None
    if not isinstance(found, dict):
        raise FormatError("the run's settings are no object", path=path)
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UsageError(
            f"the run in the folder was begun with another {' and another '.join(different)}",
            path=folder,
            hint="give the same options to go on with it, or name a new folder",
        )


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)


@contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    torch = libraries.torch()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def _stops() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: a step that is cut in the middle changes some tensors only.

    A second one ends the run at once.
    """
    pressed: list[int] = []

    def note(number: int, _frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _optimizer(recipe: Recipe, tensors: Mapping[str, Any]) -> Any:
    optim = libraries.torch().optim
    parameters = list(tensors.values())
    if recipe.optimizer == "sgd":
        return optim.SGD(parameters, lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay)
    return optim.AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.decay, fused=True
    )


def _set_rate(optimizer: Any, recipe: Recipe, step: int) -> None:
    share = min(1.0, (step + 1) / recipe.warm_up) if recipe.warm_up else 1.0
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate * share


def _save(
    task: Task, shape: Shape, recipe: Recipe, tensors: Mapping[str, Any], folder: Path
) -> None:
    """Write a checkpoint that the weight-only commands read."""
    from safetensors.torch import save

    torch = libraries.torch()
    dtype = torch.bfloat16 if recipe.dtype == "BF16" else torch.float32
    folder.mkdir(exist_ok=True)
    kept = {n: t.detach().to("cpu", dtype).contiguous() for n, t in tensors.items()}
    config = shape.config(task.model_type, task.begin)
    _write(folder / "model.safetensors", save(kept, {"format": "pt"}))
    _write(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    _write(folder / "tokenizer.json", task.tokenizer().encode())


def _take(tensors: dict[str, Any], checkpoint: Path, device: str) -> None:
    """Fill the tensors with those of a checkpoint of the same shape."""
    torch = libraries.torch()
    path = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = set(file.keys())
            sizes = {n: tuple(file.get_slice(n).get_shape()) for n in names}
            if sizes != {n: tuple(t.shape) for n, t in tensors.items()}:
                raise UsageError(
                    "the checkpoint is of a network of another shape",
                    path=path,
                    hint="give the options that it was trained with",
                )
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as problem:
        raise FormatError(f"cannot read the checkpoint: {problem}", path=path) from None


def _keep(
    path: Path, tensors: Mapping[str, Any], optimizer: Any, step: int, seconds: float
) -> None:
    """Write all that the run needs to go on after `step` steps."""
    from safetensors.torch import save

    kept = {f"weights.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for key, value in optimizer.state.get(tensor, {}).items():
            kept[f"{key}.{name}"] = value.detach().cpu()
    _write(path, save(kept, {"step": str(step), "seconds": f"{seconds:.2f}"}))


def _resume(
    path: Path, tensors: Mapping[str, Any], optimizer: Any, device: str
) -> tuple[int, float]:
    """Take up what `_keep` wrote; steps and seconds so far, 0 without such a file."""
    torch = libraries.torch()
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt", device=device) as file:
            about = file.metadata()
            names = list(file.keys())
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(f"weights.{name}"))
                    state = {}
                    for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                        if f"{key}.{name}" in names:
                            state[key] = file.get_tensor(f"{key}.{name}")
                    if state:
                        optimizer.state[tensor] = state
            return int(about["step"]), float(about["seconds"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as problem:
        raise FormatError(
            f"cannot go on from the saved state: {problem}",
            path=path,
            hint="name a new folder to begin again",
        ) from None


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as problem:
        raise OutputError(f"cannot write the log: {problem.strerror}", path=path) from None


def _cut(path: Path, step: int) -> None:
    """Keep the log's lines before `step`, which is measured again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            break  # cut off while it was written
        if not isinstance(found, dict) or found.get("step", step) >= step:
            break
        kept.append(line + "\n")
    _write(path, "".join(kept).encode())
