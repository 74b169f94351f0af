"""What configurations, adapters, tokenizers and GGUF headers say: parents, templates, code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptforensics.registry.reading import Claim, Licence, RemoteCode, Template, Tokenizer

_SAMPLED_TOKENS = 256
_LONGEST_NAME = 300
_MOST_GGUF_PARENTS = 64
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[\w.-]+/[\w.-]+)")
# What a template needs no name of: attributes of Python's objects, the objects through which
# known attacks reach them, and calls that no template engine offers.
_CODE = re.compile(
    r"__\w+__|\b(?:lipsum|cycler|joiner|get_flashed_messages|url_for|popen|subprocess|importlib)\b"
    r"|\b(?:eval|exec|compile|open|getattr|setattr|__import__)\s*\("
    r"|\|\s*attr\b|\bself\s*\.\s*_|\bimport\s+os\b|\bos\s*\.\s*\w+"
)
_TAGS = re.compile(r"\{[{%](.*?)[}%]\}", re.DOTALL)
_MOST_QUOTED = 8


def config_claims(config: Mapping[str, Any], text: bytes, file: str) -> Iterator[Claim]:
    """The repository that `_name_or_path` names; local paths are nobody's claim."""
    name = config.get("_name_or_path")
    if isinstance(name, str) and _REPOSITORY.fullmatch(name):
        yield Claim(parent=name, relation=None, source=file, line=line_of(text, "_name_or_path"))


def adapter_claims(config: Mapping[str, Any], text: bytes, file: str) -> Iterator[Claim]:
    """The base that an adapter's configuration names, with its revision where it has one."""
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(base, str) and 0 < len(base.strip()) <= _LONGEST_NAME:
        named = base.strip()
        if isinstance(revision, str) and revision not in ("", "main"):
            named = f"{named}@{revision}"
        line = line_of(text, "base_model_name_or_path")
        yield Claim(parent=named, relation="adapter", source=file, line=line)


def gguf_claims(metadata: Mapping[str, Any], file: str) -> Iterator[Claim]:
    """The parents in `general.base_model.*`, by repository where one is named, else by name."""
    count = metadata.get("general.base_model.count", 0)
    if not isinstance(count, int):
        return
    for i in range(min(count, _MOST_GGUF_PARENTS)):
        key = f"general.base_model.{i}."
        repository = metadata.get(key + "repo_url") or metadata.get(key + "url") or ""
        match = _HUB_ADDRESS.match(repository) if isinstance(repository, str) else None
        name, organization = (metadata.get(key + k) for k in ("name", "organization"))
        if match is not None:
            parent = match["id"]
        elif isinstance(name, str) and name:
            owner = isinstance(organization, str) and organization
            parent = f"{organization}/{name}" if owner else name
        else:
            continue
        yield Claim(parent=parent[:_LONGEST_NAME], relation=None, source=f"{file}: {key}*")


def gguf_licence(metadata: Mapping[str, Any], file: str) -> Licence | None:
    """`general.license` of a GGUF file."""
    said = metadata.get("general.license")
    return Licence(id=said[:_LONGEST_NAME], file=file) if isinstance(said, str) and said else None


def remote_code(config: Mapping[str, Any], text: bytes, file: str) -> RemoteCode | None:
    """`auto_map`: the classes that a loader would import from the repository."""
    declared = config.get("auto_map")
    if not declared:
        return None
    values = declared.values() if isinstance(declared, Mapping) else [declared]
    names = sorted({str(n)[:_LONGEST_NAME] for v in values for n in _each(v) if n})
    return RemoteCode(file=file, names=tuple(names[:_MOST_QUOTED]), line=line_of(text, "auto_map"))


def templates_of(config: Mapping[str, Any], text: bytes, file: str) -> Iterator[Template]:
    """The chat templates in a tokenizer's configuration: one, or a list with names."""
    said = config.get("chat_template")
    line = line_of(text, "chat_template")
    if isinstance(said, str):
        yield template(said, file, line)
    elif isinstance(said, Sequence):
        for one in said:
            if isinstance(one, Mapping) and isinstance(one.get("template"), str):
                yield template(one["template"], file, line)


def template(text: str, file: str, line: int | None = None) -> Template:
    """A chat template: its digest, and what in its tags reaches for Python's own objects."""
    found = [m[0].strip() for tag in _TAGS.finditer(text) for m in _CODE.finditer(tag[1])]
    plain = "\n".join(row.rstrip() for row in text.strip().splitlines())
    return Template(
        file=file,
        sha256=hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest(),
        code=tuple(dict.fromkeys(found))[:_MOST_QUOTED],
        line=line,
    )


def tokenizer(pieces: Mapping[str, int], file: str) -> Tokenizer:
    """A vocabulary by digest, and a sample of it that two vocabularies share where they can.

    The tokens sampled are those whose digests are smallest, so two vocabularies with the same
    strings have the same sample, whoever made them.
    """
    rows = sorted(pieces.items(), key=lambda row: (row[1], row[0]))
    whole = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    ranked = sorted(pieces, key=_rank)[:_SAMPLED_TOKENS]
    return Tokenizer(
        file=file,
        sha256=whole,
        size=len(pieces),
        sample={
            token.encode("utf-8", "backslashreplace").decode(): pieces[token] for token in ranked
        },
    )


def line_of(text: bytes, key: str) -> int | None:
    """The line, from 1, on which a JSON text has a key first; None if it has not."""
    at = text.find(f'"{key}"'.encode())
    return None if at < 0 else text.count(b"\n", 0, at) + 1


def _rank(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
