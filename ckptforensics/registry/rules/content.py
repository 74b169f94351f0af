"""Rules on what the files of a model are: other than their names say, dangerous, broken, unread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ckptforensics.registry.judged import Judged, World
from ckptforensics.registry.reading import ModelFacts
from ckptforensics.registry.rules.rule import Draft, file_of

# Stumbles that rules of their own are about; all others are a file that cannot be read.
_TOLD = frozenset(
    {
        *("pickle", "pickle-classes", "not-fetched", "digest", "not-finite"),
        *("remote", "base", "family", "copy"),
    }
)
# What a suffix promises of a container.
_CONTAINERS = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".bin": "torch",
    ".pt": "torch",
    ".pth": "torch",
}
# GGUF's names of quantizations in a file's name, such as model.Q4_K_M.gguf.
_QUANT = re.compile(
    r"(?:^|[._-])((?:I?Q[1-8]_(?:K|0|1|NL|XXS|XS|S|M)|BF16|F16|F32|TQ[12]_0)\w*)", re.I
)
_PARAMETERS = re.compile(r"(?:^|[^A-Za-z0-9.])(\d+(?:\.\d+)?)\s?([BbMm])(?![A-Za-z0-9])")
# A name counts in billions and leaves embeddings out; a factor of two is another model.
_OTHER_SIZE = 2.0
_SHOWN = 5


def content_unlike_name(judged: Judged, world: World) -> Iterator[Draft]:
    """Another container, quantization or size than the names say."""
    model, facts = judged.model, judged.model.reading.facts
    if facts is None:
        return
    beside = {stumble.file for stumble in model.reading.stumbles if stumble.kind == "copy"}
    for file in model.reading.files:
        suffix = "." + file.name.rpartition(".")[2].lower()
        promised = _CONTAINERS.get(suffix)
        if (
            file.role == "weights"
            and file.name not in beside
            and promised not in (None, facts.container)
        ):
            yield Draft(
                about=f"container:{file.name}",
                message=f"the file is a {facts.container} file and is called '{suffix}'",
                file=file.name,
            )
    if facts.container == "gguf":
        yield from _other_quantization(judged, facts)
    named = _parameters(model.name)
    if named is not None and not model.adapter:
        ratio = facts.parameters / named
        if not 1 / _OTHER_SIZE <= ratio <= _OTHER_SIZE:
            yield Draft(
                about="size",
                message=f"its name says {named:.3g} parameters, and its tensors hold "
                f"{facts.parameters:.3g}",
                severity="note",
            )


def _other_quantization(judged: Judged, facts: ModelFacts) -> Iterator[Draft]:
    files = [f.name for f in judged.model.reading.files if f.role == "weights"]
    for name in files[:1]:
        match = _QUANT.search(name.rpartition("/")[2].removesuffix(".gguf"))
        if match is None:
            continue
        said = match[1].upper()
        kind = said.split("_K")[0] + "_K" if "_K" in said else said
        # Mixtures such as Q4_K_M hold several types; theirs is among them.
        stored = {t.upper().removeprefix("GGUF:") for t in facts.types}
        if not any(one.startswith(kind) or kind.startswith(one) for one in stored):
            yield Draft(
                about=f"quantization:{name}",
                message=f"its name says {said}, and its tensors are {', '.join(sorted(stored))}",
                file=name,
            )


def _parameters(name: str) -> float | None:
    """The number of parameters in a name such as Llama-3-8B; None where it has none, or several."""
    found = {
        float(number) * (1e9 if unit in "Bb" else 1e6)
        for number, unit in _PARAMETERS.findall(name.rpartition("/")[2])
    }
    return found.pop() if len(found) == 1 and min(found) > 0 else None


def remote_code(judged: Judged, world: World) -> Iterator[Draft]:
    """`auto_map`: loading the model with trust in remote code runs the repository's."""
    for code in judged.model.reading.remote_code:
        yield Draft(
            about=f"{code.file}:{','.join(code.names)}",
            message=f"{code.file} asks loaders to import code: {', '.join(code.names)}",
            file=code.file,
            line=code.line,
        )


def template_code(judged: Judged, world: World) -> Iterator[Draft]:
    """A chat template that reaches for more than the conversation."""
    for template in judged.model.reading.templates:
        if template.code:
            yield Draft(
                about=f"{template.file}:{template.sha256}",
                message=f"its chat template reaches for Python's objects: "
                f"{', '.join(template.code)}",
                file=file_of(template.file),
                line=template.line,
                evidence=(f"SHA-256 of the template: {template.sha256}",),
            )


def unsafe_pickle(judged: Judged, world: World) -> Iterator[Draft]:
    """A pickle that names or calls what no state dict needs."""
    yield from _stumbles(judged, "pickle")
    for draft in _stumbles(judged, "pickle-classes"):
        yield replace(draft, severity="note")


def not_fetched(judged: Judged, world: World) -> Iterator[Draft]:
    """Pointers, partial downloads, shards and blobs that are not there."""
    yield from _stumbles(judged, "not-fetched")


def damaged(judged: Judged, world: World) -> Iterator[Draft]:
    """Weights that training does not leave."""
    found = [d for d in judged.model.reading.damage if d.level == "finding"]
    for what in dict.fromkeys(d.what for d in found):
        rows = [d for d in found if d.what == what]
        first = rows[0]
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield Draft(
            about=what,
            message=f"{what} in {first.tensor}{more}",
            file=first.file,
            tensor=first.tensor,
            evidence=tuple(
                f"{d.tensor}: {d.what}" + (f", rows {d.rows[0]} to {d.rows[1]}" if d.rows else "")
                for d in rows[:_SHOWN]
            ),
        )
    yield from _stumbles(judged, "not-finite")


def family_inferred(judged: Judged, world: World) -> Iterator[Draft]:
    """A family that no configuration names, or none at all."""
    facts = judged.model.reading.facts
    if facts is not None and facts.family_source == "inferred":
        yield Draft(
            about="inferred",
            message=f"its family '{facts.family}' is only inferred from tensors' names and shapes",
            evidence=facts.notes,
        )
    for draft in _stumbles(judged, "family"):
        yield Draft(
            about=draft.about,
            message=f"no family is known: {draft.message}",
            file=draft.file,
            tensor=draft.tensor,
        )


def nothing_read(judged: Judged, world: World) -> Iterator[Draft]:
    """A model of which no weights were read, whatever the reason."""
    model = judged.model
    for draft in _stumbles(judged, "copy"):
        yield replace(draft, severity="note")
    if model.state == "signed":
        return
    why = tuple(dict.fromkeys(stumble.message for stumble in model.reading.stumbles))
    states = {
        "headers": "its headers were read and its weights were not",
        "unread": "nothing of its weights was read",
        "vanished": "it was there in a run before and is not found any more",
    }
    yield Draft(about=model.state, message=states[model.state], evidence=why[:_SHOWN])


def other_digest(judged: Judged, world: World) -> Iterator[Draft]:
    """Content that is not what its content-addressed name or its server states."""
    for file in judged.model.reading.files:
        if file.matches is False:
            yield Draft(
                about=f"{file.name}:{file.sha256}",
                message=f"its content is not what the store states: {file.stated}",
                file=file.name,
                evidence=(f"SHA-256 of the content: {file.sha256}",),
            )
    yield from _stumbles(judged, "digest")


def unreadable(judged: Judged, world: World) -> Iterator[Draft]:
    """Files that break their format, lead elsewhere, or are no files; and what ran out."""
    for stumble in judged.model.reading.stumbles:
        if stumble.kind not in _TOLD:
            yield Draft(
                about=f"{stumble.kind}:{stumble.file}:{stumble.tensor or ''}",
                message=f"{stumble.kind}: {stumble.message}",
                file=stumble.file,
                line=stumble.line,
                tensor=stumble.tensor,
                severity="note" if stumble.kind in ("dependency", "layout", "several") else None,
            )


def format_not_allowed(judged: Judged, world: World) -> Iterator[Draft]:
    """A container of weights that the policy does not allow."""
    facts, policy = judged.model.reading.facts, world.policy
    if facts is not None and facts.container not in policy.allowed_formats:
        yield Draft(
            about=facts.container,
            message=f"its weights are in a {facts.container} file, and the policy allows "
            f"{', '.join(policy.allowed_formats)}",
        )


def _stumbles(judged: Judged, kind: str) -> Iterator[Draft]:
    for stumble in judged.model.reading.stumbles:
        if stumble.kind == kind:
            yield Draft(
                # Another message is another finding: a baseline must not cover what is new.
                about=f"{kind}:{stumble.file}:{stumble.message}",
                message=stumble.message,
                file=stumble.file,
                line=stumble.line,
                tensor=stumble.tensor,
            )
