"""The files of a store: what they are for by their names, and opening them without being led on."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ckptforensics.errors import FormatError
from ckptforensics.registry.found import FoundFile, Problem, ProblemKind
from ckptforensics.results.audit import FileRole
from ckptforensics.sources.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NOT_A_MODEL

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# Of downloads that are not finished.
PARTIAL_SUFFIXES = (".incomplete", ".part", ".partial", ".crdownload", ".aria2")
# Projectors of llama.cpp, and models that other programs compiled.
_OF_OTHERS = ("mmproj", "openvino_")
_CARD = re.compile(r"(readme|model_?card)(\.md|\.markdown)?", re.IGNORECASE)
_TOKENIZER = re.compile(
    r"tokenizer.*|vocab\.(json|txt|model)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|spiece\.model|sentencepiece.*\.model|.*\.tiktoken|chat_template.*|.*\.jinja2?"
)
_CONFIGURATION = re.compile(
    r"(.*_)?config\.json|params\.json|.*\.index\.json|modules\.json|model_index\.json"
)
_ON_THE_HUB = re.compile(r"hf://(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<name>.+)")
# The empty file's digests say nothing of any model.
_EMPTY = frozenset(
    {
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    }
)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
}


# At most so many of the first bytes of a file; None where they are not to be had without fetching
# it, FormatError if they cannot be read.
Head = Callable[[int], bytes | None]


def no_head(_count: int) -> bytes | None:
    """That of a file of which only the listing is known."""
    return None


@dataclass(frozen=True)
class Entry:
    """One file of a listed folder.

    Attributes
    ----------
    name : its last part, as the file system or the server spells it
    bytes : its size
    opens : what `open_checkpoint` takes for it alone
    path, stated, changed, url : as of `FoundFile`
    head : its first bytes
    problem : why it cannot be used; its file is the last part of the name
    """

    name: str
    bytes: int
    opens: str
    path: Path | None = None
    stated: str | None = None
    changed: str = ""
    head: Head = field(default=no_head, compare=False)
    problem: Problem | None = None
    url: str | None = None

    def found(self, name: str, role: FileRole | None = None) -> FoundFile:
        """The same as a file of a model that names it so."""
        role = role or role_of(self.name)
        stated = None if self.stated in _EMPTY else self.stated
        return FoundFile(shown(name), role, self.bytes, self.path, stated, self.changed, self.url)


def role_of(name: str) -> FileRole:
    """What a file is for, by the last part of its name."""
    if ADAPTER_WEIGHTS.fullmatch(name) or name == ADAPTER_CONFIG:
        return "adapter"
    if _CARD.fullmatch(name):
        return "card"
    if _TOKENIZER.fullmatch(name):
        return "tokenizer"
    if _CONFIGURATION.fullmatch(name):
        return "configuration"
    if (
        name.endswith(WEIGHT_SUFFIXES)
        and not NOT_A_MODEL.fullmatch(name)
        and not name.startswith(_OF_OTHERS)
    ):
        return "weights"
    return "other"


def shown(name: str) -> str:
    """A name that any encoding can write: bytes that are no UTF-8 are spelled as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def local_entry(path: Path, roots: tuple[Path, ...], stated: str | None = None) -> Entry:
    """A file on this machine; links are followed to files below the `roots` only.

    Parameters
    ----------
    path : of the file, the directory being free of links
    roots : directories free of links
    """
    name = path.name
    try:
        status = path.lstat()
        target = path
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(path, strict=True))
            if not any(target.is_relative_to(root) for root in roots):
                said = f"the link leads out of the source, to {shown(str(target))}"
                return _unusable(path, "link-out", said)
            status = target.lstat()
    except OSError as problem:
        return _unusable(path, *_why_not_followed(path, problem))
    if not stat.S_ISREG(status.st_mode):
        what = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        return _unusable(path, "special-file", f"this is {what} and no file")
    return Entry(
        name,
        status.st_size,
        str(path),
        target,
        stated,
        changed(status),
        partial(_local_head, target),
    )


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path leads out of a directory, by links."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def changed(status: os.stat_result) -> str:
    """What tells this state of a local file from any other without reading it."""
    s = status
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def open_regular(path: Path) -> int:
    """A descriptor of a regular file that is no link; opening waits for nobody.

    Raises
    ------
    FormatError
        if it is anything else, or cannot be opened.
    """
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # as far as there are
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as problem:
        linked = problem.errno in (errno.ELOOP, errno.EMLINK)
        reason = "a link is where the file was" if linked else f"cannot read: {problem.strerror}"
        raise FormatError(reason, path=path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError("this is not a regular file", path=path, hint="give a file")
    return descriptor


def read_small(path: Path, most: int) -> bytes:
    """The content of a small local file.

    Raises
    ------
    FormatError
        if it is no regular file, cannot be read or has more than `most` bytes.
    """
    content = _local_head(path, most + 1)
    if len(content) > most:
        raise FormatError(f"the file is larger than {most:,} bytes", path=path)
    return content


def content_of(file: FoundFile, most: int) -> bytes:
    """The content of a small file of a model, such as its card, wherever it is.

    Raises
    ------
    CkptError
        `FormatError` if it is no regular file or has more than `most` bytes, and what else keeps it
        from being read.
    """
    if file.path is not None:
        return read_small(file.path, most)
    if file.url is None:
        raise FormatError("the file is not there", path=file.name)
    if file.bytes > most:
        raise FormatError(f"the file is larger than {most:,} bytes", path=file.name)
    hub = _ON_THE_HUB.fullmatch(file.url)
    if hub is not None:
        from ckptforensics.sources.hub import fetch_file

        return read_small(fetch_file(hub["repo"], hub["commit"], hub["name"], file.bytes), most)
    from ckptforensics.sources.urls import Place

    place = Place(file.url)
    return place.beginning(place.path, file.bytes) if file.bytes else b""


def _local_head(path: Path, count: int) -> bytes:
    with open(open_regular(path), "rb") as file:
        try:
            return file.read(count)
        except OSError as problem:
            raise FormatError(f"cannot read: {problem.strerror}", path=path) from None


def _why_not_followed(path: Path, problem: OSError) -> tuple[ProblemKind, str]:
    if problem.errno == errno.ELOOP:
        return "link-out", "the link leads in a circle"
    if path.is_symlink():
        return "broken-link", "the link leads nowhere"
    return "unreadable", f"cannot be read: {problem.strerror}"


def _unusable(path: Path, kind: ProblemKind, message: str) -> Entry:
    problem = Problem(kind, shown(path.name), message)
    return Entry(path.name, 0, str(path), problem=problem)
