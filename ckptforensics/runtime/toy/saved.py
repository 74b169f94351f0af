"""The folder of a run: settings, log, checkpoints, and the state from which it goes on.

`settings.json` says what the run's bits depend on, `log.jsonl` has a line a measured step,
`checkpoint-N/` is a model that the weight-only commands read, and from `state.safetensors` the run
goes on with the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from ckptforensics.errors import FormatError, OutputError, UsageError
from ckptforensics.results import write_bytes_atomically
from ckptforensics.runtime import libraries
from ckptforensics.runtime.toy.network import MOST, Shape, new_tensors
from ckptforensics.runtime.toy.recipes import Recipe, Task

SETTINGS, LOG, STATE = "settings.json", "log.jsonl", "state.safetensors"


@dataclass(frozen=True)
class Saved:
    """A run on disk.

    Attributes
    ----------
    folder : where it is
    task, text : of `settings.json`, with
    sha256 : of what is drawn from the text
    start : the checkpoint that it began from, if any
    device, compiled : where and how its steps are computed
    log : the lines of `log.jsonl`
    """

    folder: Path
    task: str
    text: str
    sha256: str
    start: str | None
    shape: Shape
    recipe: Recipe
    threads: int
    versions: dict[str, str]
    log: list[dict[str, Any]]
    device: str = "cpu"
    compiled: bool = False

    def checkpoints(self) -> dict[int, Path]:
        """Step to folder, in order."""
        found = {}
        for path in self.folder.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if number.isascii() and number.isdecimal():
                found[int(number)] = path
        return dict(sorted(found.items()))


def read(folder: Path) -> Saved:
    """A run on disk; UsageError if there is none, FormatError if its files are damaged."""
    path = folder / SETTINGS
    if not path.exists():
        raise UsageError(
            "no training run is there", path=folder, hint="name a folder that ckpt toy train wrote"
        )
    found = _settings(path)
    try:
        described = {"folder": folder, "log": _lines(folder / LOG)}
        saved: Saved = TypeAdapter(Saved).validate_python(found | described)
    except ValidationError as problem:
        what = ".".join(str(part) for part in problem.errors()[0]["loc"])
        raise FormatError(f"the run's settings are not those of a run: {what}", path=path) from None
    shape = saved.shape
    for name, most in MOST.items():
        if not 0 < getattr(shape, name) <= most:
            raise FormatError(f"the run's settings name {name} out of 1 to {most:,}", path=path)
    if shape.width % shape.heads:
        raise FormatError("the run's settings name heads that do not share the width", path=path)
    return saved


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise FormatError("the run's settings are no JSON", path=path) from None
    if not isinstance(found, dict):
        raise FormatError("the run's settings are no object", path=path)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """The measured steps of a log; what was cut off while it was written is left out."""
    try:
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
    except OSError as problem:
        raise FormatError(f"cannot read the log: {problem.strerror}", path=path) from None
    found: list[dict[str, Any]] = []
    for number, line in enumerate(whole.split(b"\n") if newline else (), 1):
        try:
            one = json.loads(line)
            if not (isinstance(one, dict) and isinstance(one["step"], int)):
                raise ValueError
        except (ValueError, KeyError):
            raise FormatError(
                f"line {number} of the log is no measured step",
                path=path,
                hint="put back the log as it was, or name a new folder",
            ) from None
        found.append(one)
    return found


def load(saved: Saved, step: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Tensors of a checkpoint, the last by default, in float32; UsageError if there is none."""
    checkpoints = saved.checkpoints()
    if not checkpoints or (step is not None and step not in checkpoints):
        raise UsageError("the run has no such checkpoint", path=saved.folder)
    tensors = {
        name: tensor.detach() for name, tensor in new_tensors(saved.shape, 0, device).items()
    }
    take(tensors, checkpoints[max(checkpoints) if step is None else step], device)
    return tensors


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, which is made if it is not there.

    Raises
    ------
    UsageError
        if another one does.
    OutputError
        if the folder cannot be made.
    """
    _make(folder)
    try:
        import fcntl
    except ImportError:  # not on this operating system
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(
            "another process trains in this folder",
            path=folder,
            hint="wait until it ends, or name another folder",
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def claimed(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run with these settings, rather than nothing.

    Raises
    ------
    UsageError
        if it holds a run with other settings, or something else.
    """
    path = folder / SETTINGS
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(
                "the folder holds something else", path=folder, hint="name a new folder"
            )
        return False
    different = _differences(_settings(path), wanted)
    if different:
        raise UsageError(
            f"the run in the folder has {', '.join(different)}",
            path=folder,
            hint="go on with it by the same options and versions, or name a new folder",
        )
    return True


def claim(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Write the settings of a run that begins."""
    _write(folder / SETTINGS, (json.dumps(wanted, indent=1) + "\n").encode())


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a run has otherwise, in words."""
    different = []
    for name, value in wanted.items():
        has = found.get(name)
        if isinstance(value, Mapping):
            different += _differences(has if isinstance(has, Mapping) else {}, value)
        # The text is known by what is drawn from it, whatever its file is called.
        elif has != value and name != "text":
            shown = {"sha256": "another text"}.get(name)
            different.append(shown or f"{name.replace('_', ' ')} {has}, not {value}")
    return different


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes_atomically(path, content)
    except OutputError as problem:
        raise OutputError(
            problem.message,
            path=path,
            hint="make room and give the same command again: the run goes on",
        ) from None


def save_checkpoint(
    task: Task, shape: Shape, recipe: Recipe, tensors: Mapping[str, Any], folder: Path
) -> None:
    """Write a checkpoint that the weight-only commands read."""
    from safetensors.torch import save

    torch = libraries.torch()
    dtype = torch.bfloat16 if recipe.dtype == "BF16" else torch.float32
    _make(folder)
    kept = {n: t.detach().to("cpu", dtype).contiguous() for n, t in tensors.items()}
    config = shape.config(task.model_type, task.begin)
    _write(folder / "model.safetensors", save(kept, {"format": "pt"}))
    _write(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    _write(folder / "tokenizer.json", task.tokenizer().encode())


def take(tensors: dict[str, Any], checkpoint: Path, device: str) -> None:
    """Fill the tensors with those of a checkpoint of the same shape."""
    torch = libraries.torch()
    path = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    if not path.exists():
        raise UsageError(
            "there is no checkpoint",
            path=checkpoint,
            hint="name one that ckpt toy train wrote, such as RUN/checkpoint-500",
        )
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
                    if not torch.isfinite(tensor).all():
                        raise FormatError("a weight is not finite", path=path, tensor=name)
    except (OSError, SafetensorError) as problem:
        raise FormatError(f"cannot read the checkpoint: {problem}", path=path) from None


def keep(path: Path, tensors: Mapping[str, Any], optimizer: Any, step: int, seconds: float) -> None:
    """Write all that the run needs to go on after `step` steps."""
    from safetensors.torch import save

    kept = {f"weights.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for key, value in optimizer.state.get(tensor, {}).items():
            kept[f"{key}.{name}"] = value.detach().cpu()
    _write(path, save(kept, {"step": str(step), "seconds": f"{seconds:.2f}"}))


def resume(
    path: Path, tensors: Mapping[str, Any], optimizer: Any, device: str
) -> tuple[int, float]:
    """Take up what `keep` wrote; steps and seconds so far, 0 without such a file."""
    torch = libraries.torch()
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt", device=device) as file:
            about = file.metadata()
            names = list(file.keys())
            with torch.no_grad():
                for name, tensor in tensors.items():
                    stored = file.get_tensor(f"weights.{name}")
                    if stored.shape != tensor.shape:
                        raise ValueError(f"{name} has another shape")
                    tensor.copy_(stored)
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


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"cannot make the folder: {problem.strerror}", path=folder) from None


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a log; OutputError if it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as problem:
        raise OutputError(f"cannot write the log: {problem.strerror}", path=path) from None


def cut(path: Path, step: int) -> None:
    """Keep the log's lines before `step`, which is measured again; FormatError if it is damaged."""
    if not path.exists():
        if step == 0:
            return
        raise FormatError(
            "the run's log is missing", path=path, hint="put it back, or name a new folder"
        )
    kept = [json.dumps(line) + "\n" for line in _lines(path) if line["step"] < step]
    _write(path, "".join(kept).encode())
