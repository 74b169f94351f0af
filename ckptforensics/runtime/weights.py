"""A transformers model filled from this package's readers, so that whatever they decode can run."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import CkptError, NothingAnalysable, TensorError
from ckptforensics.runtime import libraries
from ckptforensics.runtime.gguf import gguf_config, gguf_tensors

# What is done with the weights, which are whole numbers no more when they come out of the readers.
_ABOUT_STORAGE = ("quantization_config", "auto_map", "compression_config", "dtype", "torch_dtype")
# Heads that nothing here reads, which a base model's checkpoint need not have.
_UNREAD = ("pooler.",)
# Beginnings of what transformers says after a message: its list of all that it knows.
_LISTS = (" Should contain one of", " Should be one of", ", should be one of")


@dataclass(frozen=True)
class Placement:
    """Where a model is put.

    Attributes
    ----------
    device : `cpu`, `cuda`, `cuda:1`, `mps`
    dtype : name of the element type that weights and states have
    memory : bytes of the device that weights may take; what is more is offloaded (accelerate)
    """

    device: str = "cpu"
    dtype: str = "float32"
    memory: int | None = None


def build_model(checkpoint: Checkpoint, placement: Placement, attention: str | None = None) -> Any:
    """The checkpoint's model as an instance of its transformers class, in evaluation mode.

    Nothing of the checkpoint is executed: neither code that it names nor a pickle.

    Parameters
    ----------
    attention : transformers' name of the implementation, None for its own choice

    Raises
    ------
    NothingAnalysable
        if transformers has no class for it.
    TensorError
        if the class has weights that the checkpoint lacks, or of other shapes.
    MissingDependency
        if torch, transformers or, where weights are offloaded, accelerate is not installed.
    """
    torch = libraries.torch()
    with libraries.quietly():
        config = _config(checkpoint)
        kind = _model_class(checkpoint, config)
        if attention is not None:
            config._attn_implementation = attention
        dtype = getattr(torch, placement.dtype)
        state = _state(checkpoint, kind, config, dtype)
        where = _map(placement, kind, config, dtype)
        try:
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                output_loading_info=True,
                **where,
            )
        except (RuntimeError, ValueError) as problem:
            raise TensorError(
                f"transformers' {kind.__name__} cannot hold these weights: {problem}",
                path=checkpoint.source.path,
            ) from None
    missing = sorted(name for name in report["missing_keys"] if not _is_unread(name))
    head = model.get_output_embeddings()
    if head is not None and missing:
        own = {name for name, part in model.named_parameters() if part is head.weight}
        if own and set(missing) <= own:
            # What needs no head runs all the same; what does is told that there is none.
            model = model.base_model
            missing = []
    if missing:
        raise TensorError(
            f"transformers' {kind.__name__} has a weight that the checkpoint lacks",
            path=checkpoint.source.path,
            tensor=missing[0],
            hint="'ckpt inspect' lists what is there",
        )
    if "offload_folder" in where:  # as long as the model is used, and not longer
        weakref.finalize(model, shutil.rmtree, where["offload_folder"], ignore_errors=True)
    return model.eval()


def _config(checkpoint: Checkpoint) -> Any:
    source = checkpoint.source
    if source.container == "gguf":
        return gguf_config(checkpoint)
    if source.config is None:
        raise NothingAnalysable(
            "running the model needs its config.json",
            path=source.path,
            hint="name one with --config",
        )
    fields = {k: v for k, v in source.config.items() if k not in _ABOUT_STORAGE}
    model_type = fields.pop("model_type", None)
    try:
        return libraries.transformers().AutoConfig.for_model(model_type, **fields)
    except CkptError:
        raise
    except Exception as problem:  # what a configuration class makes of wrong values is its own
        raise NothingAnalysable(
            f"transformers cannot make a configuration of model_type {model_type!r}: "
            f"{_first_sentence(str(problem))}",
            path=source.path,
            hint="'sign' and 'layers' read the weights without it",
        ) from None


def _model_class(checkpoint: Checkpoint, config: Any) -> Any:
    """The class that the configuration names, else the one that generates text, else the body."""
    transformers = libraries.transformers()
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    order = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING]
    if checkpoint.architecture.family.bidirectional:
        order.reverse()
    for mapping in order:
        if type(config) in mapping:
            return mapping[type(config)]
    raise NothingAnalysable(
        f"transformers has no language model of model_type {config.model_type!r}",
        path=checkpoint.source.path,
    )


def _map(placement: Placement, kind: Any, config: Any, dtype: Any) -> Mapping[str, Any]:
    """Where from_pretrained puts the weights: on the device, or also elsewhere if they are many."""
    torch = libraries.torch()
    if placement.memory is None and placement.device == "cpu":
        return {}
    device = libraries.usable_device(placement.device)
    with torch.device("meta"):
        empty = kind(config)
    needed = sum(p.numel() for p in empty.parameters()) * torch.empty(0, dtype=dtype).element_size()
    room = placement.memory
    if room is None and device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * 0.9)
    if room is None or needed <= room:
        return {} if device.type == "cpu" else {"device_map": {"": placement.device}}
    libraries.accelerate()
    place: Any = "cpu" if device.type == "cpu" else device.index or 0
    limits = {place: room} if place == "cpu" else {place: room, "cpu": 1 << 50}
    return {
        "device_map": "auto",
        "max_memory": limits,
        "offload_folder": tempfile.mkdtemp(prefix="ckpt-offload-"),
    }


def _state(checkpoint: Checkpoint, kind: Any, config: Any, dtype: Any) -> dict[str, Any]:
    torch = libraries.torch()
    if checkpoint.source.container == "gguf":
        with torch.device("meta"):
            empty = kind(config)
        return {
            name: torch.from_numpy(weights.copy()).to(dtype)
            for name, weights in gguf_tensors(checkpoint, empty)
        }
    lock = threading.Lock()
    return {name: _Stored(checkpoint, name, lock) for name in checkpoint.store}


class _Stored:
    """A tensor of the checkpoint that is read when transformers asks for its elements."""

    def __init__(self, checkpoint: Checkpoint, name: str, lock: threading.Lock) -> None:
        self._checkpoint, self._name, self._lock = checkpoint, name, lock
        self.shape = checkpoint.store.info(name).shape

    def __getitem__(self, index: Any) -> Any:
        # transformers asks from several threads, and a reader is one thread's.
        with self._lock:
            weights = self._checkpoint.store.read(self._name)
        return libraries.torch().from_numpy(weights)[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)


def _first_sentence(message: str) -> str:
    """An error of transformers without its list of hundreds of names."""
    for begin in _LISTS:
        message = message.partition(begin)[0]
    return message.strip().splitlines()[0] if message.strip() else "unknown"


def _is_unread(name: str) -> bool:
    return any(part in name for part in _UNREAD)
