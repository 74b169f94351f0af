"""The folder of a run: settings, log, checkpoints, and the state from which it goes on.

`settings.json` says what the run's bits depend on, `log.jsonl` has a line a measured step,
`checkpoint-N/` is a model that the weight-only commands read, and from `state.safetensors` the run
goes on with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        described = {"folder": folder, "log": [line for line in log if isinstance(line, dict)]}
        saved: Saved = TypeAdapter(Saved).validate_python(found | described)
    except (TypeError, ValidationError) as problem:
        errors = problem.errors() if isinstance(problem, ValidationError) else ()
        what = ".".join(str(part) for part in errors[0]["loc"]) if errors else "no object"
        raise FormatError(f"the run's settings are not those of a run: {what}", path=path) from None
    for name, most in MOST.items():
        if not 0 < getattr(saved.shape, name) <= most:
            raise FormatError(f"the run's settings name {name} out of 1 to {most:,}", path=path)
    return saved


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


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the settings, or see that those which are there are the same."""
    path = folder / SETTINGS
    _make(folder)
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(
                "the folder holds something else", path=folder, hint="name a new folder"
            )
        write_bytes_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise FormatError("the run's settings are no JSON", path=path) from None
    if not isinstance(found, dict):
        raise FormatError("the run's settings are no object", path=path)
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UsageError(
            f"the run in the folder was begun with another {' and another '.join(different)}",
            path=folder,
            hint="give the same options to go on with it, or name a new folder",
        )


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
    write_bytes_atomically(folder / "model.safetensors", save(kept, {"format": "pt"}))
    write_bytes_atomically(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    write_bytes_atomically(folder / "tokenizer.json", task.tokenizer().encode())


def take(tensors: dict[str, Any], checkpoint: Path, device: str) -> None:
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


def keep(path: Path, tensors: Mapping[str, Any], optimizer: Any, step: int, seconds: float) -> None:
    """Write all that the run needs to go on after `step` steps."""
    from safetensors.torch import save

    kept = {f"weights.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for key, value in optimizer.state.get(tensor, {}).items():
            kept[f"{key}.{name}"] = value.detach().cpu()
    write_bytes_atomically(path, save(kept, {"step": str(step), "seconds": f"{seconds:.2f}"}))


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
    write_bytes_atomically(path, "".join(kept).encode())
