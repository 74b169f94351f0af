"""Trees of models as other programs keep them, made of tiny models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptforensics.registry.found import Found, Listing
from ckptforensics.registry.stores.listing import list_models

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PLANTED = FIXTURES / "planted"
COMMIT = "a" * 40
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
CARD = "---\nbase_model: org/base\n---\n# A model\n"
_MEDIA = "application/vnd.ollama.image."


def planted(folder: Path) -> Path:
    """A copy of the planted model with a card."""
    shutil.copytree(PLANTED, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text(CARD)
    return folder


def listed(*sources: object, **options: Any) -> dict[str, Found]:
    """Models by name."""
    return {model.name: model for model in listing(*sources, **options).models}


def listing(*sources: object, **options: Any) -> Listing:
    return list_models([str(source) for source in sources], **options)


def problems(model: Found) -> list[tuple[str, str]]:
    """Kinds and files."""
    return [(problem.kind, problem.file) for problem in model.problems]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hf_repository(
    cache: Path, files: Mapping[str, bytes], *, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """A snapshot of `org/name` with links to blobs, as huggingface_hub makes it."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        large = name.endswith((".safetensors", ".gguf", ".bin"))
        blob = repository / "blobs" / (sha256(content) if large else git_blob(content))
        blob.write_bytes(content)
        file = snapshot / name
        file.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (2 + name.count("/"))
        file.symlink_to(f"{up}blobs/{blob.name}")
    if ref is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def ollama_model(
    store: Path,
    layers: Mapping[str, bytes],
    *,
    name: str = "registry.ollama.ai/library/llama3/latest",
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A manifest and its blobs; the manifest as it was written."""
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(content: bytes) -> dict[str, Any]:
        (blobs / f"sha256-{sha256(content)}").write_bytes(content)
        return {"digest": f"sha256:{sha256(content)}", "size": len(content)}

    about = json.dumps(config or {"model_format": "gguf"}).encode()
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **blob(about)},
        "layers": [{"mediaType": _MEDIA + kind, **blob(of)} for kind, of in layers.items()],
    }
    write_manifest(store, name, manifest)
    return manifest


def write_manifest(store: Path, name: str, manifest: object) -> Path:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def tiny_gguf(file: Path, seed: int = 0) -> bytes:
    """A LLaMA model as GGUF."""
    from tests.support.models import tiny_llama, write_gguf

    write_gguf(tiny_llama(seed), file)
    return file.read_bytes()
