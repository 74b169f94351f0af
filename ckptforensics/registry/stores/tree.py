"""A directory on this machine as a tree of its files, walked within bounds."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckptforensics.registry.found import Problem
from ckptforensics.registry.stores.files import Entry, local_entry, shown

DEEPEST = 32
_MOST_FILES = 1_000_000
# What version control, Python and the Hugging Face cache keep for themselves.
PASSED_OVER = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".no_exist"})
_TELL_EVERY = 10_000


@dataclass
class Folder:
    """A listed folder.

    Attributes
    ----------
    name : below the top of the tree, parts separated by `/`; empty for the top
    opens : what `open_checkpoint` takes for it
    files : by the last part of their names
    folders : below it
    problems : of folders below it that were not listed; their files are names below the top
    """

    name: str
    opens: str
    files: dict[str, Entry] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def below(self, name: str) -> str:
        """The name of something in it, below the top of the tree."""
        return f"{self.name}/{name}" if self.name else name

    def everything(self) -> Iterator[Folder]:
        """It and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.everything()


@dataclass
class Tree:
    """A walked directory.

    Attributes
    ----------
    top : its folder
    stores : folders that are a store of their own, not walked: as (path, which)
    not_read : what was not listed, and why
    """

    top: Folder
    stores: list[tuple[Path, str]] = field(default_factory=list)
    not_read: list[tuple[str, str]] = field(default_factory=list)


def walk(
    place: Path,
    roots: tuple[Path, ...] = (),
    *,
    is_store: Callable[[Path], str | None] = lambda _path: None,
    entry: Callable[[Path, tuple[Path, ...]], Entry] = local_entry,
    tell: Callable[[str], None] | None = None,
) -> Tree:
    """All regular files below a directory, in order of their names.

    Parameters
    ----------
    place : the directory; may itself be a link
    roots : where links may lead besides the directory itself
    is_store : which store a folder is, if it is one of its own
    entry : makes the entry of a file
    tell : is told how far the walk is
    """
    top = Path(os.path.realpath(place))
    tree = Tree(Folder("", str(place)))
    walker = _Walker(tree, (top, *roots), is_store, entry, tell)
    walker.walk(tree.top, Path(place), top, 0)
    return tree


@dataclass
class _Walker:
    tree: Tree
    roots: tuple[Path, ...]
    is_store: Callable[[Path], str | None]
    entry: Callable[[Path, tuple[Path, ...]], Entry]
    tell: Callable[[str], None] | None
    count: int = 0

    def walk(self, folder: Folder, named: Path, place: Path, depth: int) -> None:
        try:
            with os.scandir(place) as items:
                names = sorted(item.name for item in items)
        except OSError as problem:
            folder.problems.append(
                Problem("unreadable", shown(folder.name), f"cannot be listed: {problem.strerror}")
            )
            return
        for name in names:
            if self.count >= _MOST_FILES:
                if self.count == _MOST_FILES:
                    said = f"only the first {_MOST_FILES:,} files were listed"
                    self.tree.not_read.append((shown(str(named)), said))
                self.count += 1
                return
            self._add(folder, named / name, place / name, depth)

    def _add(self, folder: Folder, named: Path, path: Path, depth: int) -> None:
        try:
            mode = path.lstat().st_mode
        except OSError:  # told by whoever makes the entry
            mode = 0
        if stat.S_ISDIR(mode):
            self._add_folder(folder, named, path, depth)
        elif stat.S_ISLNK(mode) and path.is_dir():
            # One to a folder of the tree is one more name of what is listed.
            self._check_link(folder, path)
        else:
            self.count += 1
            if self.tell is not None and self.count % _TELL_EVERY == 0:
                self.tell(f"{self.count:,} files")
            folder.files[path.name] = self.entry(path, self.roots)

    def _add_folder(self, folder: Folder, named: Path, path: Path, depth: int) -> None:
        if path.name in PASSED_OVER:
            return
        kind = self.is_store(path)
        if kind is not None:
            self.tree.stores.append((path, kind))
        elif depth >= DEEPEST:
            said = f"folders are listed {DEEPEST} deep, and this one is below"
            self.tree.not_read.append((shown(str(named)), said))
        else:
            inner = Folder(folder.below(path.name), str(named))
            folder.folders.append(inner)
            self.walk(inner, named, path, depth + 1)

    def _check_link(self, folder: Folder, path: Path) -> None:
        target = Path(os.path.realpath(path))
        said = None
        if path.is_relative_to(target):
            said = "the link leads in a circle"
        elif not any(target.is_relative_to(root) for root in self.roots):
            said = f"the link leads out of the source, to {shown(str(target))}"
        if said is not None:
            folder.problems.append(Problem("link-out", shown(folder.below(path.name)), said))
