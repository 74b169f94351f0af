"""LM Studio's folder: publisher/model/*.gguf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckptforensics.errors import CkptError
from ckptforensics.registry.found import Listing
from ckptforensics.registry.stores.directory import list_directory
from ckptforensics.registry.stores.files import read_small
from ckptforensics.sources import parse_json_object

_LONGEST_SETTINGS = 1 << 20


def default_place() -> Path:
    """Where LM Studio keeps models: as its settings say, else below its home."""
    home = _home()
    settings = home / "settings.json"
    try:
        content = read_small(settings, _LONGEST_SETTINGS)
        said = parse_json_object(content, path=settings, what="settings").get("downloadsFolder")
    except CkptError:
        said = None
    return Path(said) if isinstance(said, str) and said else home / "models"


def list_folder(place: Path, *, tell: Callable[[str], None] | None = None) -> Listing:
    """The models of the folder, named `publisher/model/FILE`."""
    return list_directory(place, store="lmstudio", tell=tell)


def _home() -> Path:
    """LM Studio's home, which a file in the user's may point to; older versions had another."""
    user = Path.home()
    try:
        pointed = read_small(user / ".lmstudio-home-pointer", 4096).decode().strip()
    except (CkptError, UnicodeDecodeError):
        pointed = ""
    if pointed:
        return Path(pointed)
    former = user / ".cache" / "lm-studio"
    home = user / ".lmstudio"
    return former if former.is_dir() and not home.is_dir() else home
