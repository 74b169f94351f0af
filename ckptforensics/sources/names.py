"""How the files of a checkpoint are named."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

ContainerName = Literal["safetensors", "torch", "gguf"]

SHARD = re.compile(r"(?P<stem>.+[-_])(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.[a-z]+)")
# Files that stand beside a model and are not one: adapters, heads and states of a training.
NOT_A_MODEL = re.compile(
    r"((adapter_model|value_head|v_head|training_args|optimizer|scheduler|scaler|sampler|rng_state"
    r"|random_states|dl_state_dict|custom_checkpoint)([_-]\d+)*|.*_optim_states)"
    r"\.(safetensors|bin|pt|pth)"
)
ADAPTER_WEIGHTS = re.compile(r"adapter_model\.(safetensors|bin)")
ADAPTER_CONFIG = "adapter_config.json"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """How a container's files are named in a directory of the Hugging Face layout."""

    container: ContainerName
    suffixes: tuple[str, ...]
    single: str
    index_suffix: str

    @property
    def index(self) -> str:
        """The name of the index of the shards."""
        return self.single.partition(".")[0] + self.index_suffix


SAFETENSORS = Layout(
    "safetensors", (".safetensors",), "model.safetensors", ".safetensors.index.json"
)
TORCH = Layout("torch", (".bin", ".pt", ".pth"), "pytorch_model.bin", ".bin.index.json")


def split_name(name: str) -> tuple[str, str]:
    """What the shards of one model share: the stem and how many there are."""
    match = SHARD.fullmatch(name)
    return (match["stem"], match["count"]) if match else (name, "")


def is_url(model: str | Path) -> bool:
    """Whether it is a URL: no local path has such a name."""
    text = str(model)
    return _URL.fullmatch(text) is not None and not os.path.lexists(text)


def path_of_url(url: str) -> Path:
    """The local path that `file://` names."""
    from urllib.request import url2pathname  # slow, and needed here only

    return Path(url2pathname(urlsplit(url).path))


class UrlPath(type(Path())):  # type: ignore[misc]
    """A URL where a path is shown; a plain one would lose a slash of it."""

    def __str__(self) -> str:
        return re.sub(r"^([a-z][a-z0-9+.-]*):/(?=[^/])", r"\1://", super().__str__())


def as_path(model: str | Path) -> Path:
    """What a user named as a path, which may be that of a URL."""
    if not is_url(model):
        return Path(model)
    return path_of_url(str(model)) if str(model).startswith("file://") else UrlPath(model)
