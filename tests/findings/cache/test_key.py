"""What of the package's own code counts for a signature in the cache, and what does not."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptforensics
from ckptforensics import Fit, SignatureCache
from ckptforensics.findings.cache.key import MEASURING, code_sha256, signature_keys
from ckptforensics.results import SignatureDocument

PACKAGE = Path(ckptforensics.__file__).parent
# What signing imports and does not decide what is measured, and why.
EXCEPTIONS = {
    "deferred.py": "only when a name is imported",
    "errors.py": "only how a failure is told, and a failure is not kept",
    "progress.py": "only what is shown meanwhile",
    "version.py": "a release may measure as the one before; a result from the cache is given anew",
    "findings/cache/key.py": "the key itself: a change of it changes the keys, or nothing",
    "findings/cache/store.py": "only where a signature is kept, which its own digest guards",
    "findings/model.py": "opens, and describes the files: done afresh for every result",
    "quantities.py": "only how numbers are written in sentences, of which a signature has none",
    "results": "only the form of what was measured; the document's version is in the key",
    "sources/__init__.py": "only names",
    "sources/contents.py": "which files they are, which is in the key",
    "sources/digests.py": "which files they are; the digests themselves are in the key",
    "sources/hub.py": "which files they are, which is in the key",
    "sources/local.py": "which files they are, which is in the key",
    "sources/links.py": "only what is refused, and a refusal is not kept",
    "sources/names.py": "which files they are, which is in the key",
    "sources/original.py": "which files they are, and a configuration, which is in the key",
    "sources/parallel.py": "only when ranges are fetched",
    "sources/pointers.py": "only what is refused, and a refusal is not kept",
    "sources/retry.py": "only how often a fetch is tried",
    "sources/urls.py": "where ranges come from; their bytes are those of the mirror",
}


def is_in(file: Path, parts: tuple[str, ...]) -> bool:
    """Whether a file of the package is one of the parts, or in one of them."""
    name = file.relative_to(PACKAGE).as_posix()
    return any(name == part or name.startswith(f"{part}/") for part in parts)


def module_file(name: str) -> Path | None:
    """The file of a module of the package; None for what is none."""
    place = PACKAGE.parent / name.replace(".", "/")
    found = [f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()]
    return found[0] if found and name.partition(".")[0] == PACKAGE.name else None


def imported(file: Path) -> Iterator[Path]:
    """Files of the package that this one imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (found for name in names if (found := module_file(name)) is not None)


def reached() -> set[Path]:
    """All files of the package that signing imports, directly or not."""
    found: set[Path] = set()
    waiting = [PACKAGE / "findings" / "sign.py"]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(imported(file))
    return found


def test_all_that_signing_imports_counts_or_is_excepted_with_a_reason():
    files = reached()
    assert len(files) > 50
    parts = (*MEASURING, *EXCEPTIONS)
    assert [f for f in files if not is_in(f, parts)] == []


def test_nothing_is_listed_that_signing_does_not_import():
    files = reached()
    unused = [p for p in (*MEASURING, *EXCEPTIONS) if not any(is_in(f, (p,)) for f in files)]
    assert unused == []
    assert [p for p in EXCEPTIONS if is_in(PACKAGE / p, MEASURING)] == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "copy" / PACKAGE.name, ignore=ignored))


def edit(file: Path) -> None:
    """A change that changes nothing."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write("# edited\n")


def test_the_copy_is_the_same(package):
    assert code_sha256(package) == code_sha256()


@pytest.mark.parametrize(
    "name",
    [
        "cli/main.py", "findings/accumulated.py", "findings/explosion.py", "findings/norms.py",
        "jobs/processes.py", "lineage/compare.py", "lineage/new.py", "registry/__init__.py",
        "render/html.py", "results/files.py", "sources/new_store.py", "version.py",
    ],
)  # fmt: skip
def test_other_code_keeps_every_signature(name, package):
    edit(package / name)
    assert code_sha256(package) == code_sha256()


@pytest.mark.parametrize(
    "name",
    [
        "architectures/families/llama.toml", "architectures/families/new.toml", "checkpoint.py",
        "compute/new.py", "findings/labels.py", "findings/measure.py", "forward/norms.py",
        "layers/stream.py", "linear/fit.py", "probes/rollout.py", "spectra/krylov.py",
        "tensors/dtypes.py",
    ],
)  # fmt: skip
def test_code_that_measures_counts(name, package):
    edit(package / name)
    assert code_sha256(package) != code_sha256()


def test_a_removed_file_counts(package):
    (package / "architectures" / "families" / "gpt2.toml").unlink()
    assert code_sha256(package) != code_sha256()


def key(model: Path) -> tuple[str, ...]:
    return signature_keys(ckptforensics.open_checkpoint(model), Fit(), {})


def test_the_version_of_the_document_counts(planted, monkeypatch):
    before = key(planted)
    monkeypatch.setattr(SignatureDocument.model_fields["schema_version"], "default", "99.0")
    assert not set(key(planted)) & set(before)


def test_a_signature_of_an_older_release_is_given_as_one_of_this(planted, tmp_path, monkeypatch):
    told: list[str] = []
    cache = SignatureCache(tmp_path / "cache", tell=told.append)
    with monkeypatch.context() as patch:
        # The module: its name in the package is the function's.
        patch.setattr(sys.modules["ckptforensics.findings.sign"], "__version__", "0.0.1")
        assert ckptforensics.sign(planted, cache=cache).document.tool_version == "0.0.1"
    found = ckptforensics.sign(planted, cache=cache)
    assert told[-1].startswith("from the cache: ")
    assert found.document == ckptforensics.sign(planted).document


def test_a_signature_outlives_an_edited_renderer_and_no_edited_norm(package, planted, tmp_path):
    def said() -> str:
        """What signing with the copy, in a process of its own, says on stderr."""
        done = subprocess.run(
            [sys.executable, "-m", "ckptforensics", "sign", str(planted), "--no-progress"],
            cwd=package.parent,
            env={**os.environ, "CKPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "fingerprint" in done.stdout
        return done.stderr

    assert said() == ""
    for name in ("render/text.py", "lineage/pair.py", "cli/output.py", "registry/__init__.py"):
        edit(package / name)
    assert said().startswith("from the cache: ")
    edit(package / "forward" / "norms.py")
    assert said() == ""
