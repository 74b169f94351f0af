"""URLs that fsspec reads, listed by the rules of a directory."""

from __future__ import annotations

from collections.abc import Callable

from ckptforensics.errors import CkptError, UsageError
from ckptforensics.registry.found import Listing
from ckptforensics.registry.stores.files import WEIGHT_SUFFIXES, Entry, shown
from ckptforensics.registry.stores.models import Place as Named
from ckptforensics.registry.stores.models import models_of
from ckptforensics.registry.stores.tree import DEEPEST, PASSED_OVER, Folder
from ckptforensics.sources.urls import Place, RemoteFile

_MOST_FILES = 100_000
# What is asked for at once of a file whose beginning is looked at.
_BEGINNING = 4096
# Files of such names are taken for what these say: to look into one is a request.
_ORDINARY = (
    ".md", ".txt", ".py", ".jinja", ".model", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".svg",
    ".gif", ".pdf", ".html", ".yaml", ".yml", ".toml", ".log", ".onnx", ".h5", ".msgpack", ".ot",
    ".tflite", ".npy", ".npz", ".parquet", ".arrow", ".zip", ".gz", ".tar", ".gitattributes",
    ".gitignore", ".sh", ".xml", ".lock", ".metadata", ".jsonl",
)  # fmt: skip


def list_url(
    url: str, *, offline: bool = False, tell: Callable[[str], None] | None = None
) -> Listing:
    """The models below a URL, or in the file that it names.

    Raises
    ------
    UsageError
        if there is no such place or it cannot be read.
    MissingDependency
        if a package is needed for URLs of its kind.
    """
    if offline:
        return Listing((), ((shown(url), "a URL is not listed in offline mode"),))
    place = Place(url)
    own = place.info()
    walk = _Walk(place, tell)
    base = url.rstrip("/")
    name = base.rpartition("/")[2]
    if not own.is_folder and own.name.endswith(WEIGHT_SUFFIXES):
        top = Folder("", base.rpartition("/")[0])
        top.files[own.name] = walk.entry(own, url)
    else:
        top = Folder("", base)
        walk.add(top, place.path, base, 0)
        if not top.files and not top.folders and not walk.not_read:
            raise UsageError("there are no files", path=url, hint="check the URL")
    models, left = models_of(top, Named("url", shown(name), "", shown(top.opens)))
    return Listing(tuple(models), (*walk.not_read, *left), place.requests)


class _Walk:
    def __init__(self, place: Place, tell: Callable[[str], None] | None) -> None:
        self.place, self.tell = place, tell
        self.not_read: list[tuple[str, str]] = []
        self._count = 0

    def add(self, folder: Folder, path: str, url: str, depth: int) -> None:
        """Add what is in a folder of the server."""
        try:
            items = self.place.list(path)
        except CkptError as problem:
            if depth == 0:
                raise
            self.not_read.append((shown(url), problem.message))
            return
        if self.tell is not None:
            self.tell(shown(url))
        for item in items:
            named = f"{url}/{item.name}"
            if item.name in ("", ".", "..") or "\0" in item.name:
                self.not_read.append((shown(named), "no file can have this name"))
            elif item.is_folder and depth >= DEEPEST:
                said = f"folders are listed {DEEPEST} deep, and this one is below"
                self.not_read.append((shown(named), said))
            elif item.is_folder:
                if item.name not in PASSED_OVER:
                    inner = Folder(folder.below(item.name), named)
                    folder.folders.append(inner)
                    self.add(inner, item.path, named, depth + 1)
            elif self._count == _MOST_FILES:
                self.not_read.append((shown(url), f"only the first {_MOST_FILES:,} files"))
                return
            else:
                self._count += 1
                folder.files[item.name] = self.entry(item, named)

    def entry(self, file: RemoteFile, url: str) -> Entry:
        """What is known of a file; its beginning is asked for where somebody looks."""
        if file.size is None and not file.name.lower().endswith(_ORDINARY):
            file = self.place.info(file.path)
        size = file.size or 0
        head = _Beginning(self.place, file, size)
        return Entry(file.name, size, url, changed=file.state, head=head, url=url)


class _Beginning:
    """The first bytes of a file, fetched when they are first asked for and kept."""

    def __init__(self, place: Place, file: RemoteFile, size: int) -> None:
        self._place, self._file, self._size = place, file, size
        self._content = b""

    def __call__(self, count: int) -> bytes | None:
        name = self._file.name.lower()
        json = name.endswith(".json") and self._size > _BEGINNING and count <= _BEGINNING
        if json or name.endswith(_ORDINARY):
            return b""
        count = min(max(count, _BEGINNING), self._size)
        if len(self._content) < count:
            self._content = self._place.beginning(self._file.path, count)
        return self._content
