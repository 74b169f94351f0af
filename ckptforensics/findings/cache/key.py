"""The key of a signature in the cache: a digest of all that decides the result.

A file counts by its SHA-256 where that was computed of it, else by its place on the disk, its times
and samples of its content; never by its name, nor by a digest that the name states. The machine's
arithmetic is no part of the key: other processors, BLAS libraries and numbers of threads change the
last digits only. Of the package counts what measures (`MEASURING`), so that signatures outlive a
release that measures as the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import FormatError
from ckptforensics.linear import Fit
from ckptforensics.results import SignatureDocument
from ckptforensics.sources import RemoteFiles
from ckptforensics.tensors import Container

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_PACKAGE = Path(__file__).parents[2]
# Folders and files of the package whose code or data decide a signature: all that `findings.sign`
# imports, but for what only fetches, keeps or describes.
MEASURING = (
    "architectures",
    "arrays.py",
    "checkpoint.py",
    "compute",
    "findings/cache/journal.py",
    "findings/damage.py",
    "findings/fingerprint.py",
    "findings/labels.py",
    "findings/measure.py",
    "findings/overflow.py",
    "findings/scope.py",
    "findings/sign.py",
    "findings/skipped.py",
    "findings/summary.py",
    "forward",
    "layers",
    "linear",
    "probes",
    "sources/mirror.py",
    "sources/ranges.py",
    "sources/strictjson.py",
    "spectra",
    "tensors",
)


def signature_keys(checkpoint: Checkpoint, fit: Fit, sha256: Mapping[Path, str]) -> tuple[str, ...]:
    """Hex SHA-256 that two signatures share only if they are the same.

    Parameters
    ----------
    sha256 : of whole files, where they were computed

    Returns
    -------
    one by the files as they are found and, if that makes another, one by the digests computed

    Raises
    ------
    FormatError
        if a file cannot be read.
    """
    facts = {
        "tool": [code_sha256(), np.__version__],
        "document": SignatureDocument.model_fields["schema_version"].default,
        "fit": _fit(fit),
        "config": checkpoint.source.config,
        # What is said of the architecture is made afresh for every result.
        "architecture": repr(replace(checkpoint.architecture, notes=(), unused={})),
        "recipe": checkpoint.store.recipe(),
    }
    keys = []
    for known in ({}, sha256):
        files = [
            [c.size, c.header_sha256, *_identity(checkpoint, c, known)]
            for c in checkpoint.store.containers
        ]
        keys.append(_sha256_of_json({**facts, "files": files}))
    return tuple(dict.fromkeys(keys))


@cache
def code_sha256(package: Path = _PACKAGE) -> str:
    """Digest of the code and data that decide what is measured; `package` is the package's folder.

    A change of what is not in `MEASURING`, such as a renderer, leaves it as it is.
    """
    return sha256_of_parts(MEASURING, package)


def sha256_of_parts(
    parts: Iterable[str], package: Path = _PACKAGE, suffixes: tuple[str, ...] = (".py", ".toml")
) -> str:
    """Digest of files of a package, and of all files with these suffixes in its folders."""
    digest = hashlib.sha256()
    for part in parts:
        place = package / part
        inside = (
            [f for f in place.rglob("*") if f.suffix in suffixes] if place.is_dir() else [place]
        )
        for file in sorted(inside):
            content = file.read_bytes()
            name = file.relative_to(package).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def places(checkpoint: Checkpoint) -> list[list[int]]:
    """Device, inode, size and times of each local file, which any change of it changes.

    Raises
    ------
    FormatError
        if there is no such file any more.
    """
    paths = [container.path for container in checkpoint.store.containers]
    return [_place(path) for path in paths if _address(checkpoint, path) is None]


def _address(checkpoint: Checkpoint, path: Path) -> str | None:
    """Where a mirror's file comes from; None for a local file."""
    remote = checkpoint.source.remote
    if isinstance(remote, RemoteFiles) and path in remote.files:
        return remote.files[path].url
    return None


def _place(path: Path) -> list[int]:
    try:
        s = path.stat()
    except OSError as problem:
        raise _unreadable(path, problem) from None
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _unreadable(path: Path, problem: OSError) -> FormatError:
    return FormatError(f"cannot read the file: {problem.strerror}", path=path)


def _identity(
    checkpoint: Checkpoint, container: Container, computed: Mapping[Path, str]
) -> list[Any]:
    """What tells the file from any other of the same size and header."""
    path = container.path
    url = _address(checkpoint, path)
    if url is not None:
        stated = checkpoint.source.sha256.get(path)
        # The digest is the server's word, so it counts for that server only. Without it the
        # address names repository, commit and file.
        return ["remote", url if stated is None else [urlsplit(url).netloc, stated]]
    if path in computed:
        return ["content", computed[path]]
    return ["place", *_place(path), _samples_sha256(path, container.size)]


def _samples_sha256(path: Path, size: int) -> str:
    """Digest of blocks spread evenly over the file, its first and last bytes among them."""
    digest = hashlib.sha256()
    last = max(0, size - _SAMPLE_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            for begin in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
                file.seek(begin)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as problem:
        raise _unreadable(path, problem) from None
    return digest.hexdigest()


def _fit(fit: Fit) -> Any:
    if fit.kind != "sampled":
        return fit.kind
    if fit.calibration is None:
        return [fit.kind, fit.samples, fit.seed]
    vectors = [
        [layer, list(x.shape), hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()]
        for layer, x in sorted(fit.calibration.by_layer.items())
    ]
    return [fit.kind, vectors]


def _sha256_of_json(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
