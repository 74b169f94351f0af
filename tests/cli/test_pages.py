"""Every page for people: it says for whom it is, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ckptforensics"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Paths of files of this repository, alone or with folders, in pictures and tables too.
_FILE = re.compile(r"(?<![\w./<-])(?:[\w*-]+/)*[\w*-]+\.(?:py|toml)\b")
_FOLDER = re.compile(r"(?<![\w./<~-])(?:[a-z]\w*/)+(?![\w.*{<-])")
_MODULE = re.compile(r"python -m ((?:tools|benchmarks|ckptforensics)(?:\.\w+)+)")
# Files that users write.
THEIRS = {"ckpt.toml"}
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def exists(name: str) -> bool:
    """As a path of the repository or of the package; a bare name anywhere in the package."""
    name = name.rstrip("/")
    if any(True for folder in (ROOT, PACKAGE) for _ in folder.glob(name)):
        return True
    return "/" not in name and any(PACKAGE.rglob(name))


def missing(text: str) -> list[str]:
    files = {name for name in _FILE.findall(text) if "NAME" not in name} - THEIRS
    modules = {name.replace(".", "/") + ".py" for name in _MODULE.findall(text)}
    return sorted(name for name in files | modules if not exists(name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_exist(page: Path):
    assert missing(page.read_text(encoding="utf-8")) == []


def test_what_does_not_exist_is_seen():
    text = "`linear/fit.py`, `linear/fits.py`, fit.py\n -> tests/nowhere/test_*.py `NAME.toml`"
    text += " `python -m benchmarks.nothing`, `python -m ckptforensics.results.schemas`"
    assert missing(text) == ["benchmarks/nothing.py", "linear/fits.py", "tests/nowhere/test_*.py"]


def test_folders_of_the_architecture_exist_and_none_is_left_out():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(_FOLDER.findall(text))
    assert {name for name in named if not exists(name)} == set()
    rooms = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# The README's first lines say it in their own way, a changelog is for everybody.
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.name not in ("README.md", "CHANGELOG.md")],
    ids=lambda page: page.name,
)
def test_the_first_line_names_the_reader(page: Path):
    title, between, first = page.read_text(encoding="utf-8").split("\n")[:3]
    assert title.startswith("# ")
    assert between == ""
    assert first.startswith("For "), first


def test_the_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert pages - {"README.md"} <= set(_LINK.findall(text))
