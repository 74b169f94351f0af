"""The stages of reading one model, the cheapest first: digests, texts, headers, weights."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import (
    CkptError,
    FormatError,
    MissingDependency,
    NotFetched,
    NotFinite,
    NothingAnalysable,
    UnknownFamily,
    UnsafePickle,
    one_line,
)
from ckptforensics.registry.catalog.lookup import is_sketched, signature_of_weights
from ckptforensics.registry.claims import metadata
from ckptforensics.registry.claims.card import read_card
from ckptforensics.registry.claims.pickles import globals_in, is_harmful
from ckptforensics.registry.found import FoundFile
from ckptforensics.registry.reading import (
    Licence,
    ModelFacts,
    Reading,
    SignatureFacts,
    Stumble,
    unread_files,
)
from ckptforensics.registry.request import ReadingRequest
from ckptforensics.registry.stores.digests import verify_digest
from ckptforensics.registry.stores.files import content_of
from ckptforensics.results import (
    Signature,
    SignatureDocument,
    signature_bytes,
    write_bytes_atomically,
)
from ckptforensics.results.audit import AuditedLayer
from ckptforensics.sources import parse_json_object

_MOST_MESSAGE = 600
_MOST_NAMES = 8
# The SHA-256 of the empty file, which is nobody's weights.
_EMPTY = hashlib.sha256().hexdigest()
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MOST_TEXT_BYTES = 64_000_000


@dataclass
class _State:
    """A reading that grows stage by stage."""

    request: ReadingRequest
    known: dict[str, Any] = field(default_factory=dict)
    stumbles: list[Stumble] = field(default_factory=list)
    checkpoint: Checkpoint | None = None

    def reading(self) -> Reading:
        return Reading(**self.known, stumbles=tuple(dict.fromkeys(self.stumbles)))

    def add(self, name: str, *values: Any) -> None:
        """Add to one of the reading's tuples."""
        self.known[name] = (*self.known.get(name, ()), *values)

    def stumble(self, kind: str, file: str, problem: CkptError) -> None:
        """Note what could not be read, without the place of the store in it."""
        said = problem.message if problem.hint is None else f"{problem.message}; {problem.hint}"
        self.stumbles.append(
            Stumble(
                kind=kind,
                file=file,
                message=one_line(said)[:_MOST_MESSAGE],
                tensor=problem.tensor,
            )
        )


def read(request: ReadingRequest) -> Iterator[Reading]:
    """The reading after each stage."""
    state = _State(request)
    state.known["files"] = unread_files(request.found)
    state.stumbles += [Stumble.of(problem) for problem in request.found.problems]
    for stage in (_texts, _headers, _digests, _copies, _sketch, _weights):
        try:
            stage(state)
        except MemoryError:
            problem = CkptError(f"it needs more than {request.memory / 1e9:.1f} GB of memory")
            state.stumble("limits", "", problem)
        yield state.reading()


def _digests(state: _State) -> None:
    """Whole-file digests, computed where the file is in another state than when one was."""
    found = state.request.found
    files = []
    for file, unread in zip(found.files, unread_files(found), strict=True):
        sha256, matches = state.request.known.get(file.changed), None
        # Of headers alone no weights are read, and a file that claims any size and is not what it
        # says is not hashed, unless its digest is what it claims.
        unwanted = not state.request.weights or (state.checkpoint is None and not file.stated)
        if file.bytes > _MOST_TEXT_BYTES and unwanted:
            pass
        elif sha256 is not None and (file.stated or "").startswith("sha256:"):
            matches = file.stated == f"sha256:{sha256}"
        elif file.path is not None and (sha256 is None or file.stated is not None):
            try:
                sha256, matches = verify_digest(file)
            except CkptError as problem:
                state.stumble("unreadable", file.name, problem)
        files.append(unread.model_copy(update={"sha256": sha256, "matches": matches}))
    state.known["files"] = tuple(files)


def _weights_digest(state: _State) -> str | None:
    """One digest of all weight files that are read, or of all there are where none can be.

    Whatever they are called, and whatever lies beside them. None where one is not known; a digest
    that a server states counts where the file was not read whole.
    """
    read = _files_read(state)
    digests = [
        file.sha256 or (file.stated or "").partition("sha256:")[2]
        for file in state.known["files"]
        if file.role in ("weights", "adapter") and (not read or file.name in read)
    ]
    if not digests or not all(digests) or _EMPTY in digests:
        return None
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _files_read(state: _State) -> set[str]:
    """Names of the files that the model, or the adapter, is read from."""
    if state.checkpoint is None:
        return set()
    paths = {_real(path) for path in state.checkpoint.source.files}
    names = {path.name for path in state.checkpoint.source.files}
    return {
        file.name
        for file in state.request.found.files
        if (file.name in names if file.path is None else _real(file.path) in paths)
    }


def _copies(state: _State) -> None:
    """Weight files that are not read as a part of the model: told, and looked at for what they do.

    A loader may well take them.
    """
    state.known["weights"] = _weights_digest(state)
    read = _files_read(state)
    for file in state.request.found.files:
        if file.path is None or file.name in read or file.role not in ("weights", "other"):
            continue
        if file.name.endswith(_TORCH_SUFFIXES):
            _look_at_pickle(state, file)
        if file.role == "weights" and read:
            note = CkptError("these weights lie beside those that are read, and were not read")
            state.stumble("copy", file.name, note)


def _look_at_pickle(state: _State, file: FoundFile) -> None:
    """Tell which globals loading a file would import, of which plain data have no need."""
    assert file.path is not None
    if any(one.kind == "pickle" and one.file == file.name for one in state.stumbles):
        return
    try:
        named = globals_in(file.path)
    except CkptError:  # told where the model was opened, or another program's file
        return
    harmful = [name for name in named if is_harmful(name)]
    if named:
        kind = "pickle" if harmful else "pickle-classes"
        shown = ", ".join((harmful or named)[:_MOST_NAMES])
        state.stumble(kind, file.name, CkptError(f"loading this pickle imports {shown}"))


def _texts(state: _State) -> None:
    """Cards, configurations, templates: what they claim, each by itself."""
    for file in state.request.found.files:
        reader = _reader_of(file)
        remote = file.path is None
        # What is nowhere was told when it was listed.
        if reader is None or (remote and (file.url is None or state.request.offline)):
            continue
        try:
            reader(state, file, content_of(file, _MOST_TEXT_BYTES))
        except CkptError as problem:
            state.stumble("card" if file.role == "card" else "text", file.name, problem)
        except RecursionError:
            state.stumble("text", file.name, FormatError("it is nested too deeply"))


def _reader_of(file: FoundFile) -> Callable[[_State, FoundFile, bytes], None] | None:
    name = file.name.rpartition("/")[2]
    if "/" in file.name and file.role != "card":
        return None  # configurations of inner folders are those of other parts
    if name.lower() == "readme.md" and "/" not in file.name:
        return _card
    if name in (
        "config.json",
        "adapter_config.json",
        "tokenizer_config.json",
        "chat_template.json",
    ):
        return _configuration
    if name in ("chat_template.jinja", "template"):
        return _template
    return _licence_text if name == "license" else None


def _card(state: _State, file: FoundFile, data: bytes) -> None:
    card = read_card(data, file.name)
    state.add("claims", *card.claims)
    if card.licence is not None:
        state.known["licence"] = card.licence
    state.stumbles += [
        Stumble(kind="card", file=file.name, message=what, line=line)
        for what, line in card.problems
    ]


def _configuration(state: _State, file: FoundFile, data: bytes) -> None:
    name = file.name
    config = parse_json_object(data, path=Path(name), what="configuration")
    if name == "adapter_config.json":
        state.add("claims", *metadata.adapter_claims(config, data, name))
    elif name == "config.json":
        state.add("claims", *metadata.config_claims(config, data, name))
    state.add("templates", *metadata.templates_of(config, data, name))
    code = metadata.remote_code(config, data, name)
    if code is not None:
        state.add("remote_code", code)


def _template(state: _State, file: FoundFile, data: bytes) -> None:
    # Ollama's templates are Go's, whose tags read no attributes of Python.
    state.add("templates", metadata.template(data.decode("utf-8", "replace"), file.name, 1))


def _licence_text(state: _State, file: FoundFile, data: bytes) -> None:
    """A licence that a store keeps as a text: its first line that says something."""
    text = data[:4096].decode("utf-8", "replace")
    first = next((row.strip() for row in text.splitlines() if row.strip()), None)
    if first and "licence" not in state.known:
        state.known["licence"] = Licence(id=first[:200], file=file.name, line=1)


def _headers(state: _State) -> None:
    """Family and sizes, and what the weight files' own metadata claims."""
    found = state.request.found
    if found.opens is None:
        return
    if found.adapter and state.request.base is None:
        message = "an adapter is read together with its base, which is not among the models"
        state.stumble("base", "adapter_config.json", CkptError(message))
        return
    model, base = found.opens, state.request.base if found.adapter else None
    try:
        checkpoint = open_checkpoint(model, base=base, offline=state.request.offline)
    except CkptError as problem:
        state.stumble(_kind(problem), _file_of(problem, state), problem)
        return
    state.checkpoint = checkpoint
    state.known["facts"] = _facts(checkpoint)
    for container in checkpoint.store.containers:
        if checkpoint.source.container == "gguf" and not found.adapter:
            name = _file_name(container.path, state)
            said = container.metadata
            state.add("claims", *metadata.gguf_claims(said, name))
            licence = metadata.gguf_licence(said, name)
            if licence is not None:
                state.known.setdefault("licence", licence)
            text = said.get("tokenizer.chat_template")
            if isinstance(text, str):
                state.add("templates", metadata.template(text, name))
    _vocabulary(state, checkpoint)


def _vocabulary(state: _State, checkpoint: Checkpoint) -> None:
    from ckptforensics.tokens import read_vocabulary

    try:
        pieces = read_vocabulary(checkpoint)
    except CkptError as problem:
        state.stumble("text", _file_of(problem, state), problem)
        return
    if pieces:
        in_header = checkpoint.source.container == "gguf"
        file = checkpoint.source.files[0].name if in_header else "tokenizer.json"
        state.known["tokenizer"] = metadata.tokenizer(pieces, file)


def _facts(checkpoint: Checkpoint) -> ModelFacts:
    architecture = checkpoint.architecture
    types: Counter[str] = Counter()
    for container in checkpoint.store.containers:
        for info in container.tensors.values():
            count = 1
            for side in info.shape:
                count *= side
            types[str(info.dtype)] += count
    return ModelFacts(
        family=architecture.family.name,
        family_source=architecture.source,
        hidden_size=architecture.sizes.hidden_size,
        num_layers=architecture.sizes.num_layers,
        parameters=sum(types.values()),
        container=checkpoint.source.container,
        types=dict(sorted(types.items())),
        notes=(*checkpoint.source.notes, *architecture.notes),
    )


def _sketch(state: _State) -> None:
    """What the model is found by among others, unless the same weights were sketched before."""
    request, checkpoint = state.request, state.checkpoint
    if checkpoint is None or request.sketch is None:
        return
    weights = None if request.found.adapter else state.known.get("weights")
    catalog = None if request.catalog is None else Path(request.catalog)
    if catalog is not None and weights and is_sketched(catalog, weights, request.code):
        return
    from ckptforensics.registry.sketch.make import sketch

    try:
        found = sketch(checkpoint).found
    except CkptError as problem:
        state.stumble(_kind(problem), _file_of(problem, state), problem)
        return
    write_bytes_atomically(Path(request.sketch), found.model_dump_json().encode())


def _weights(state: _State) -> None:
    """The signature: of the same weights as it was measured before, else measured now."""
    request, checkpoint = state.request, state.checkpoint
    if checkpoint is None or not request.weights:
        return
    weights = state.known.get("weights")
    # An adapter's own weights are not those that are signed.
    key = None if request.found.adapter else weights
    if key is not None and request.catalog is not None:
        before = signature_of_weights(Path(request.catalog), key, request.code)
        if before is not None:
            state.known["signature"], state.known["damage"] = before
            return
    from ckptforensics.findings import Scope, SignatureCache, sign

    scope = Scope(None, None, request.memory)
    try:
        signature = sign(checkpoint, cache=SignatureCache.of_user(), scope=scope)
    except CkptError as problem:
        state.stumble(_kind(problem), _file_of(problem, state), problem)
        return
    state.known["damage"] = signature.document.model.damage
    state.known["signature"] = _keep(signature, key, Path(request.signature))


def _keep(signature: Signature, weights: str | None, path: Path) -> SignatureFacts:
    """Write the signature's file, which is the same for the same weights wherever they lie."""
    document = signature.document
    if weights is not None:
        model = document.model.model_copy(update={"path": f"sha256-{weights}", "commit": None})
        document = document.model_copy(update={"model": model})
    data = signature_bytes(replace(signature, document=document))
    write_bytes_atomically(path, data)
    return SignatureFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        fingerprint=document.fingerprint,
        layers=_layers(document),
    )


def _layers(document: SignatureDocument) -> tuple[AuditedLayer, ...]:
    labels: dict[int, Any] = dict.fromkeys(document.explosion, "explosion")
    labels |= dict.fromkeys(document.decay, "decay")
    return tuple(
        AuditedLayer(layer=s.layer, sigma=s.sigma, gap=s.gap, label=labels.get(s.layer))
        for s in document.layers
    )


# The nearest class decides.
_KINDS: tuple[tuple[type[CkptError], str], ...] = (
    (UnsafePickle, "pickle"),
    (NotFetched, "not-fetched"),
    (MissingDependency, "dependency"),
    (UnknownFamily, "family"),
    (NothingAnalysable, "family"),
    (NotFinite, "not-finite"),
    (FormatError, "container"),
)


def _kind(problem: CkptError) -> str:
    return next((kind for of, kind in _KINDS if isinstance(problem, of)), "values")


def _file_of(problem: CkptError, state: _State) -> str:
    """The file that an error is about, by its name in the model."""
    if problem.path is None:
        return ""
    return _file_name(Path(problem.path), state)


def _file_name(path: Path, state: _State) -> str:
    for file in state.request.found.files:
        if file.path is not None and file.path == path:
            return file.name
    for file in state.request.found.files:
        if file.path is not None and _real(file.path) == _real(path):
            return file.name
    return path.name


def _real(path: Path) -> str:
    return os.path.realpath(path)
