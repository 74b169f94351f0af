"""Catalogs of made-up models: a real audit, whose listing and whose processes are made up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ckptforensics.registry import audit as auditing
from ckptforensics.registry.found import Found, FoundFile, Listing
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.policy import Policy
from ckptforensics.registry.reading import (
    Claim,
    Licence,
    ModelFacts,
    ReadFile,
    Reading,
    RemoteCode,
    SignatureFacts,
    Stumble,
)
from ckptforensics.results.audit import AuditDocument, AuditedLayer
from tests.support.audits import HOSTILE_NAMES, sha256
from tests.support.comparisons import two
from tests.support.recorded import Played

LONG_NAME = "long/" + "n" * 5_000
_FAMILY = 12
_FAMILIES = ("llama", "qwen3", "gemma3", "mistral", "phi3")


def made_up(path: Path, count: int, *, hostile: bool = False, **options: Any) -> AuditDocument:
    """Audit `count` models into the catalog at `path`; what the audit says.

    Families have 12 models. Some models are not read, some comparisons end in an error. Hostile
    names are those of the first models, of claimed parents and in messages.
    """
    names = names_of(count, hostile=hostile)
    models = tuple(sorted((_found(i, name) for i, name in enumerate(names)), key=lambda m: m.name))
    listing = Listing(models, (("models/private", "permission denied"),))
    runner = SimpleNamespace(run=partial(_run, names))
    how = AuditOptions(**{"catalog": path, "level": "fast", **options})
    with (
        mock.patch.object(auditing, "list_models", return_value=listing),
        mock.patch.object(AuditOptions, "runner", runner),
    ):
        return auditing.audit(["models"], how)


def names_of(count: int, *, hostile: bool) -> list[str]:
    """The names of the models."""
    names = [f"org{i % 17}/model-{i}" for i in range(count)]
    if hostile:
        for i, name in enumerate([*HOSTILE_NAMES, LONG_NAME][: count - 1], 1):
            names[i] = name
    return names


def policy() -> Policy:
    """Some of whose suppressions are used, expired, or out of use."""
    rows = [
        {"rule": rule, "model": model, "reason": "agreed", "expires": expires}
        for rule, model, expires in (
            ("CKPT009", "org*", "2999-01-01"),
            ("CKPT002", "*", "2000-01-01"),
            ("CKPT016", "nobody", "2999-01-01"),
        )
    ]
    return Policy.model_validate({"severity": {"CKPT014": "error"}, "suppressions": rows})


def _found(i: int, name: str) -> Found:
    file = FoundFile("model.safetensors", "weights", 10**6 + i, None, changed=f"{i}")
    path = f"/srv/models/{i}/{name}"
    return Found(name, "directory", path, path, files=(file,))


def _run(names: list[str], jobs: Any) -> Iterator[Played]:
    for job in jobs:
        if job.module == "ckptforensics":
            yield _compared(job)
            continue
        i = names.index(job.model)
        Path(job.arguments[0]).with_suffix(".safetensors").write_bytes(b"x")
        text = _reading(i, names).model_dump_json()
        yield Played(job.model, job.arguments, module=job.module, tape=(0, text, ""))


def _compared(job: Any) -> Played:
    """Every seventh comparison fails, every fifth is of strangers."""
    number = int(sha256(job.model), 16)
    if number % 7 == 0:
        tape = (2, "", f"ckpt: error: {job.model} cannot be compared")
    else:
        tape = (0, two("independent" if number % 5 == 0 else "derived").model_dump_json(), "")
    return Played(job.model, job.arguments, module=job.module, tape=tape)


def _reading(i: int, names: list[str]) -> Reading:
    draw = random.Random(i)
    name, first = names[i], i - i % _FAMILY
    file = ReadFile(
        name="model.safetensors",
        role="weights",
        bytes=10**6 + i,
        changed=f"{i}",
        sha256=sha256(f"file {i}"),
    )
    if i % 10 == 9:
        why = Stumble(kind="container", file=file.name, message=f"the header of {name} is cut off")
        return Reading(files=(file,), stumbles=(why,))
    relation = draw.choice(("finetune", "quantized", None))
    claim = Claim(parent=names[first], relation=relation, source="README.md", line=3)
    elsewhere = Claim(parent=f"elsewhere/{name}", relation=None, source="config.json")
    layers = tuple(
        AuditedLayer(layer=layer, sigma=sigma, gap=sigma[0] / sigma[1])
        for layer in range(1, 25)
        for sigma in [(10 ** draw.uniform(0, 4), 1 + draw.random() / 10)]
    )
    signature = SignatureFacts(
        sha256=sha256(f"signature {i}"), fingerprint=sha256(f"print {i}")[:32], layers=layers
    )
    return Reading(
        files=(file,),
        claims=(claim, elsewhere) if i != first else (),
        licence=Licence(id=draw.choice(("mit", "apache-2.0", name)), file="README.md", line=2),
        remote_code=(
            (RemoteCode(file="config.json", names=(f"module.{name}",)),) if i % 3 == 0 else ()
        ),
        facts=ModelFacts(
            family=draw.choice(_FAMILIES),
            family_source="inferred" if i % 4 == 0 else "config",
            hidden_size=576,
            num_layers=24,
            parameters=10**6,
            container="safetensors",
            types={"BF16": 10**6},
        ),
        signature=signature,
        weights=sha256(f"weights {i}"),
    )
