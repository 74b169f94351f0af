"""One training run, and how it goes on where it stopped.

Batches are drawn from the seed and the step alone, so that a run ends with the same bits whether it
was interrupted or not.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, MissingDependency
from ckptforensics.progress import Progress, running
from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy import saved
from ckptforensics.runtime.toy.network import Shape, new_tensors, run
from ckptforensics.runtime.toy.recipes import Recipe, Schedule, Task


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


class Stepper:
    """Steps of a run: each draws its batch and follows the gradient, in place.

    Parameters
    ----------
    tensors : the network's, which change
    compiled : torch.compile the network
    """

    def __init__(
        self,
        task: Task,
        shape: Shape,
        recipe: Recipe,
        tensors: Mapping[str, Any],
        *,
        compiled: bool = False,
    ) -> None:
        self._task, self._shape, self._recipe, self._tensors = task, shape, recipe, tensors
        self._forward = libraries.torch().compile(run) if compiled else run
        self.optimizer = _optimizer(recipe, tensors)

    def step(self, number: int) -> float:
        """Step `number`, counted from 0; the loss before it."""
        torch = libraries.torch()
        recipe = self._recipe
        share = min(1.0, (number + 1) / recipe.warm_up) if recipe.warm_up else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * share
        device = next(iter(self._tensors.values())).device
        inputs, targets = (
            torch.from_numpy(array).to(device)
            for array in self._task.batch(self._shape, recipe, number)
        )
        logits = self._forward(self._shape, self._tensors, inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        update(loss, self.optimizer, clip=recipe.clip)
        return float(loss.detach())


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
) -> saved.Saved:
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
    MissingDependency
        if it is to be compiled and there is no compiler.
    FormatError
        if a file of the run is damaged.
    CkptError
        if the run diverges.
    """
    libraries.usable_device(device)
    if compiled and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
        raise MissingDependency(
            "torch.compile needs a C++ compiler", hint="install g++, or leave --compile out"
        )
    versions = {"python": platform.python_version(), "torch": libraries.torch().__version__}
    threads = threads or os.cpu_count() or 1
    wanted = {
        "task": task.name,
        "text": task.text,
        "sha256": task.digest,
        "start": None if start is None else str(start),
        "shape": asdict(shape),
        "recipe": asdict(recipe),
        "threads": threads,
        "device": device,
        "compiled": compiled,
        "versions": versions,
    }
    with saved.alone(folder), _deterministic(threads):
        tensors = new_tensors(shape, recipe.seed, device)
        state, log = folder / saved.STATE, folder / saved.LOG
        claimed = saved.claimed(folder, wanted)
        # First what can fail: a folder that holds settings holds a run.
        if start is not None and not state.exists():
            saved.take(tensors, start, device)
        if not claimed:
            saved.claim(folder, wanted)
        stepper = Stepper(task, shape, recipe, tensors, compiled=compiled)
        done, seconds = saved.resume(state, tensors, stepper.optimizer, device)
        if done <= schedule.steps:
            saved.cut(log, done)
        begun = time.monotonic() - seconds

        def keep(step: int) -> None:
            spent = time.monotonic() - begun
            saved.keep(state, tensors, stepper.optimizer, step, spent)

        steps = max(schedule.steps - done, 0)
        with _stops() as stopped, running(progress, "training", steps) as tell:
            for step in range(done, schedule.steps + 1):
                last = step == schedule.steps
                if step % schedule.log_every == 0 or last:
                    line = {"step": step, "seconds": round(time.monotonic() - begun, 2)}
                    line |= task.measure(shape, tensors, recipe.seed)
                    _require_finite(line["loss"], step)
                    saved.append(log, line)
                    if show is not None:
                        show(line)
                if step % schedule.save_every == 0 or last:
                    checkpoint = folder / f"checkpoint-{step}"
                    saved.save_checkpoint(task, shape, recipe, tensors, checkpoint)
                    keep(step)
                if last:
                    break
                if stopped():
                    keep(step)
                    raise KeyboardInterrupt
                _require_finite(stepper.step(step), step)
                tell(f"step {step + 1:,}")
    return saved.read(folder)


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise CkptError(
            f"the loss at step {step:,} is not finite: the run has diverged",
            hint="begin again in a new folder with a lower --rate",
        )


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
    """Whether the run is asked to end: a step that is cut in the middle changes some tensors only.

    The same signal once more ends it at once.
    """
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optimizer(recipe: Recipe, tensors: Mapping[str, Any]) -> Any:
    optim = libraries.torch().optim
    parameters = list(tensors.values())
    if recipe.optimizer == "sgd":
        return optim.SGD(parameters, lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay)
    return optim.AdamW(
        parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.decay, fused=True
    )
