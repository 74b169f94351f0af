"""Save results so that nothing is ever half written, and load them again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ckptforensics.errors import CkptError, OutputError, ResultError, UsageError
from ckptforensics.results.records import Document
from ckptforensics.results.signature import SignatureDocument
from ckptforensics.results.versions import read_document
from ckptforensics.sources import parse_json_object, read_json_object
from ckptforensics.tensors.containers.safetensors import read_safetensors

if TYPE_CHECKING:
    from ckptforensics.arrays import Floats
    from ckptforensics.results.empirical import EmpiricalDocument
    from ckptforensics.tensors import Container

_METADATA_KEY = "ckptforensics"
# The fields of a `Signature` behind its document.
_ARRAYS = ("u", "v", "sigma", "residual")

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Signature:
    """A signature: its document and its arrays, all float32, one row for each of its layers.

    Attributes
    ----------
    document : what is printed
    u : (layers, hidden_size) leading left singular vectors of L, largest component positive
    v : (layers, hidden_size) leading right singular vectors of F, the triggers
    sigma : (layers, 2) leading singular values of L
    residual : (layers,) |L'u1 - s1 v1| / s1
    """

    document: SignatureDocument
    u: Floats
    v: Floats
    sigma: Floats
    residual: Floats

    def save(self, path: str | Path) -> None:
        """Write the signature as a safetensors file; OutputError if that fails."""
        save_signature(self, path)


@dataclass(frozen=True)
class Empirical:
    """Tokens of high norm in running text: the document, and the directions they share.

    Attributes
    ----------
    document : what is printed
    direction : (plateaus, hidden_size), float32, a unit vector for each plateau
    """

    document: EmpiricalDocument
    direction: Floats

    def save(self, path: str | Path) -> None:
        """Write the directions and the document as a safetensors file; OutputError on failure."""
        from safetensors.numpy import save

        metadata = {_METADATA_KEY: self.document.model_dump_json()}
        write_bytes_atomically(path, save({"direction": self.direction}, metadata=metadata))


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Raises
    ------
    OutputError
        if the file cannot be written; an older file of that name is then untouched.
    """
    target = Path(path)
    temporary = None
    try:
        if target.exists() and not target.is_file():
            # Replacing a pipe or a device would take it away from everybody else.
            raise OutputError("this is not a regular file", path=target, hint="choose another -o")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        # mkstemp makes files private; give the result the permissions any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as problem:
        raise OutputError(
            f"cannot write the file: {problem.strerror}", path=target, hint="choose another -o"
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Put a file of these bytes in place in one step; OutputError as `write_atomically`."""

    def write(file: Path) -> None:
        file.write_bytes(data)

    write_atomically(path, write)


def save_document(document: Document, path: str | Path) -> None:
    """Write a document as JSON; OutputError if that fails."""
    text = document_text(document)
    write_atomically(path, lambda file: _write_text(file, text))


def document_text(document: Document) -> str:
    """The document as JSON text ending in a newline."""
    return document.model_dump_json(indent=2) + "\n"


def save_signature(signature: Signature, path: str | Path) -> None:
    """Write a signature's arrays and document as one safetensors file; OutputError on failure."""
    write_bytes_atomically(path, signature_bytes(signature))


def signature_bytes(signature: Signature) -> bytes:
    """The content of the file that `save_signature` writes."""
    from safetensors.numpy import save

    arrays = {name: getattr(signature, name) for name in _ARRAYS}
    return save(arrays, metadata={_METADATA_KEY: signature.document.model_dump_json()})


def load_result(path: str | Path) -> Document | Signature | Empirical:
    """Load a saved document (JSON), or a signature or empirical directions (safetensors).

    Raises
    ------
    UsageError
        if there is no such file.
    ResultError
        if it is not a saved result, or one of a version that cannot be read (`results.versions`).
    """
    return _load(path, _load_arrays)


def load_document(path: str | Path) -> Document:
    """Load a saved document, or that of arrays without them; errors as `load_result`."""
    return _load(path, lambda file: _read_header(file)[0])


def parse_document(text: bytes) -> Document:
    """The document in what comes from a pipe: JSON text, or a signature's safetensors file.

    ResultError as `load_result`.
    """
    where = Path("-")
    # Its first eight bytes are a length, its ninth begins a header.
    if text[8:9] == b"{" and int.from_bytes(text[:8], "little") < len(text):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "signature.safetensors"
            file.write_bytes(text)
            return _placed(file, where)
    try:
        return read_document(parse_json_object(text, path=where, what="the result"), where)
    except ResultError:
        raise
    except CkptError as problem:
        raise ResultError(
            f"not a saved result: {problem.message}",
            path=where,
            hint="pipe what --format json prints",
        ) from None


def _placed(file: Path, where: Path) -> Document:
    """The document of a signature that was written to a file; errors name where it came from."""
    try:
        return load_document(file)
    except CkptError as problem:
        raise ResultError(problem.message, path=where, hint=problem.hint) from None


def _load(path: str | Path, of_signature: Callable[[Path], Loaded]) -> Document | Loaded:
    file = Path(path)
    try:
        if not file.is_file():
            raise _not_a_file(file)
    except OSError as problem:
        raise UsageError(f"cannot read the file: {problem.strerror}", path=file) from None
    try:
        if file.suffix == ".safetensors":
            return of_signature(file)
        return read_document(read_json_object(file, what="the result"), file)
    except ResultError:
        raise
    except CkptError as problem:
        raise ResultError(
            f"not a saved result: {problem.message}", path=file, hint="give a file written with -o"
        ) from None


def _not_a_file(file: Path) -> UsageError:
    """What stands in place of a saved result, and what to give in its place."""
    if file.is_dir():
        return UsageError(
            "this is a directory, not a saved result",
            path=file,
            hint="give a file written with -o; 'ckpt sign' and the others read a model's directory",
        )
    if file.exists():
        return UsageError(
            "this is a pipe or a device, not a regular file",
            path=file,
            hint="give a file written with -o, or '-' for a document on stdin",
        )
    return UsageError("no such file", path=file, hint="give a file written with -o")


def holds_signature(path: str | Path) -> bool:
    """Whether a file is a saved signature rather than a checkpoint; False if it cannot be read."""
    return saved_kind(path) == "signature"


def saved_kind(path: str | Path) -> str | None:
    """Kind of document that a safetensors file of this program holds, None if it is no such file.

    Only the header is read; a document that does not fit its schema has its kind all the same.
    """
    file = Path(path)
    with contextlib.suppress(OSError, CkptError):
        if file.suffix == ".safetensors" and file.is_file():
            text = read_safetensors(file).metadata.get(_METADATA_KEY)
            if text is not None:
                with contextlib.suppress(CkptError):
                    kind = parse_json_object(text.encode(), path=file, what="document").get("kind")
                    return kind if isinstance(kind, str) else "signature"
                return "signature"
    return None


def _load_arrays(file: Path) -> Signature | Empirical:
    from ckptforensics.tensors import FileReader

    document, container = _read_header(file)
    store = FileReader([container])
    if isinstance(document, SignatureDocument):
        return Signature(document, *(store.read(name) for name in _ARRAYS))
    return Empirical(document, store.read("direction"))


def _read_header(file: Path) -> tuple[SignatureDocument | EmpiricalDocument, Container]:
    """The document of a safetensors file, and the header that says where its arrays are."""
    container = read_safetensors(file)
    text = container.metadata.get(_METADATA_KEY)
    if text is None:
        raise ResultError(
            "the file holds tensors and no signature",
            path=file,
            hint="sign the checkpoint with 'ckpt sign' first",
        )
    fields = parse_json_object(text.encode(), path=file, what="the signature's document")
    document = read_document(fields, file)
    width = getattr(getattr(document, "model", None), "hidden_size", 0)
    shapes: dict[str, tuple[int, ...]]
    if isinstance(document, SignatureDocument):
        layers = len(document.layers)
        all_shapes = ((layers, width), (layers, width), (layers, 2), (layers,))
        shapes = dict(zip(_ARRAYS, all_shapes, strict=True))
    elif document.kind == "empirical":
        shapes = {"direction": (len(document.plateaus), width)}  # type: ignore[attr-defined]
    else:
        raise ResultError(f"the file holds a '{fields.get('kind')}' document", path=file)
    for name, shape in shapes.items():
        if name not in container.tensors or container.tensors[name].shape != shape:
            raise ResultError(
                f"the {document.kind}'s array is missing or misshapen", path=file, tensor=name
            )
    return document, container  # type: ignore[return-value]


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
