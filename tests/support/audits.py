"""Audits made up by a seed: families, lying cards, hostile names, things that were not read."""

from __future__ import annotations

import hashlib
import random
from functools import cache

from ckptforensics.results import Skipped
from ckptforensics.results.audit import (
    SEVERITIES,
    AuditDocument,
    AuditedFile,
    AuditedLayer,
    AuditedModel,
    AuditRun,
    ClaimRecord,
    Coverage,
    FindingRecord,
    Location,
    RelativeRecord,
    RuleRecord,
    Severity,
)

# What no output may pass on as it is.
HOSTILE_NAMES = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(2)>",
    '=HYPERLINK("http://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "[click](http://evil.example)",
    "![x](http://evil.example/p.png)",
    "\x1b[31mred\x1b]0;title\x07",
    "exe\u202egnp.safetensors",
    "nul\0byte",
    "two\nlines\r\u2028three",
    "sur\\udcffrogate",
    "`code` | pipe",
    "{{ 7*7 }}{% x %}",
    "https://evil.example/a?b=c",
    "@everyone #1",
    "__proto__",
    "\u00fc\u4e2d\U0001f600",
)
_RULES: tuple[tuple[str, str, Severity], ...] = (
    ("CKPT001", "wrong-parent", "error"),
    ("CKPT002", "wrong-relation", "warning"),
    ("CKPT003", "undeclared-parent", "warning"),
    ("CKPT004", "hidden-copy", "error"),
    ("CKPT005", "same-weights", "note"),
    ("CKPT006", "looser-licence", "warning"),
    ("CKPT007", "other-template", "warning"),
    ("CKPT008", "content-unlike-name", "error"),
    ("CKPT009", "remote-code", "warning"),
    ("CKPT010", "template-code", "warning"),
    ("CKPT011", "refused-pickle", "error"),
    ("CKPT012", "not-fetched", "warning"),
    ("CKPT013", "damaged-weights", "error"),
    ("CKPT014", "inferred-family", "note"),
    ("CKPT015", "nothing-read", "warning"),
    ("CKPT016", "stale-suppression", "warning"),
)
RULES = tuple(
    RuleRecord(
        id=number,
        name=name,
        severity=severity,
        summary=f"The model has a problem of the kind {name.replace('-', ' ')}.",
        page=f"# {number}: {name}\n\n## What\n\nWhat it finds.\n\n## How to resolve\n\nMend it.\n",
    )
    for number, name, severity in _RULES
)
_FAMILIES = ("llama", "qwen3", "gemma3", "mistral", "phi3", "rwkv7")
_LICENCES = ("apache-2.0", "mit", "llama3.1", "cc-by-nc-4.0", "other", None)
_RELATIONS = ("finetune", "quantized", "merge", "adapter", None)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def audit(count: int = 10, seed: int = 0, hostile: bool = True) -> AuditDocument:
    """An audit of `count` models; the same for the same arguments.

    Families have 1 to 40 models. Hostile names are those of the first models, of claimed parents
    and inside messages. Every rule has a finding, some are suppressed or known.
    """
    draw = random.Random(seed)
    names = [f"org{i % 17}/model-{i}" for i in range(count)]
    if hostile:
        # From the second on: the first is a model of the Hub that others are made from.
        for i, name in enumerate(HOSTILE_NAMES[: count - 1], 1):
            names[i] = name
    models: list[AuditedModel] = []
    while len(models) < count:
        size = min(draw.randint(1, 40), count - len(models))
        first = len(models)
        models.extend(_model(draw, names, i, first) for i in range(first, first + size))
    findings = _findings(draw, models)
    return AuditDocument(
        tool_version="1.0.0",
        coverage=_coverage(models),
        models=tuple(models),
        findings=findings,
        rules=RULES,
        runs=(
            AuditRun(
                number=2,
                started="2026-11-28T02:00:00Z",
                ended="2026-11-28T02:10:00Z",
                tool_version="1.0.0",
                sources=("models", "s3://bucket/models"),
                seconds=600.0,
            ),
            AuditRun(
                number=1,
                started="2026-11-27T02:00:00Z",
                ended=None,
                tool_version="1.0.0",
                sources=("models",),
                seconds=None,
            ),
        ),
    )


def _model(draw: random.Random, names: list[str], i: int, first: int) -> AuditedModel:
    """Model `i` of the family that begins at `first`: made from one before it, or from none."""
    name = names[i]
    # The first models are in every state; most of the others were read whole.
    state = ("signed", "signed", "headers", "unread", "vanished")[
        i if i < 5 else draw.choice((0, 0, 0, 0, 0, 0, 2, 3))
    ]
    hub = i % 3 == 0
    shown = state in ("signed", "headers")
    parent = names[draw.randrange(first, i)] if i > first else None
    relation = draw.choice(_RELATIONS)
    claims: list[ClaimRecord] = []
    relatives: list[RelativeRecord] = []
    if parent is not None and state == "signed":
        relatives.append(_relative(draw, parent, i))
        if i - first > 3 and draw.random() < 0.2:
            relatives.append(_relative(draw, names[draw.randrange(first, i)], i + 1))
    if parent is not None:
        claims.append(
            ClaimRecord(
                parent=parent,
                relation=relation,
                source="README.md",
                verdict=draw.choice(("confirmed", "contradicted", "unverifiable")),
                why="the weights show it" if i % 2 else "its weights were not read",
                line=draw.randint(2, 9),
                matched=parent,
            )
        )
        claims.append(
            ClaimRecord(
                parent="elsewhere/unknown",
                relation=None,
                source="config.json",
                verdict="unverifiable",
                why="no model of this name is at hand",
            )
        )
    return AuditedModel(
        name=name,
        source="huggingface" if hub else ("directory", "ollama", "url")[i % 3],
        path=f"models/{name}" if i % 3 else f"models--{name.replace('/', '--')}",
        state=state,
        files=_files(draw, i, state),
        commit=sha256(f"commit {i}")[:40] if hub else None,
        licence=draw.choice(_LICENCES),
        family=draw.choice(_FAMILIES) if shown else None,
        family_source=("config", "gguf", "inferred")[i % 3] if shown else None,
        hidden_size=576 if shown else None,
        num_layers=24 if shown else None,
        fingerprint=sha256(f"print {i}")[:32] if state == "signed" else None,
        layers=_layers(i % 40) if state == "signed" else (),
        claims=tuple(claims),
        relatives=tuple({row.name: row for row in relatives}.values()),
        not_read=()
        if state == "signed"
        else (Skipped(what="model.safetensors", reason=f"the file of {name} cannot be read"),),
    )


def _relative(draw: random.Random, name: str, i: int) -> RelativeRecord:
    verdict = draw.choice(
        ("derived", "derived", "derived", "related", "re-parameterised", "same weights")
    )
    derived = verdict == "derived"
    return RelativeRecord(
        name=name,
        verdict=verdict,
        relation=draw.choice(("finetune", "quantized", "merge")) if derived else None,
        arrow=draw.choice(("a->b", "a->b", "unknown")) if derived else "unknown",
        evidence=(
            f"gate rows: p <= 10^-{i % 900 + 4}, under the hypothesis that both were initialised "
            "independently",
            "the weights differ by a relative 0.012 in 96 of 218 tensors",
        ),
    )


def _files(draw: random.Random, i: int, state: str) -> tuple[AuditedFile, ...]:
    if state == "vanished":
        return ()
    rows = (
        ("README.md", "card", 4_000),
        ("config.json", "configuration", 700),
        ("model.safetensors", "weights", draw.randint(10**6, 10**10)),
        ("sub/tokenizer.json", "tokenizer", 2_000_000),
    )
    return tuple(
        AuditedFile(
            name=name,
            role=role,
            bytes=size,
            stated_sha256=sha256(f"{name} {i}") if role == "weights" else None,
            sha256=sha256(f"{name} {i}") if state == "signed" or role != "weights" else None,
        )
        for name, role, size in rows
    )


@cache
def _layers(which: int) -> tuple[AuditedLayer, ...]:
    draw = random.Random(which)
    rows = []
    for layer in range(1, 25):
        sigma = (1.1 + 3 * draw.random(), 1.0 + draw.random() / 10)
        label = None
        if layer == 3 and which % 2:
            sigma, label = (81.5, 2.1), "explosion"
        elif layer == 23 and which % 2:
            sigma, label = (40.25, 1.9), "decay"
        rows.append(AuditedLayer(layer=layer, sigma=sigma, gap=sigma[0] / sigma[1], label=label))
    return tuple(rows)


def _findings(draw: random.Random, models: list[AuditedModel]) -> tuple[FindingRecord, ...]:
    """Each rule once, then a finding for every other model, in the order of documents."""
    chosen = [(rule, models[i % len(models)]) for i, rule in enumerate(RULES)]
    chosen += [(draw.choice(RULES), model) for model in models[::2]]
    found = [_finding(i, rule, model) for i, (rule, model) in enumerate(chosen)]
    return tuple(
        sorted(found, key=lambda row: (SEVERITIES.index(row.severity), row.rule, row.model))
    )


def _finding(i: int, rule: RuleRecord, model: AuditedModel) -> FindingRecord:
    in_card = i % 2 == 0
    return FindingRecord(
        id=sha256(f"{rule.id} {model.name} {i}")[:16],
        rule=rule.id,
        severity=rule.severity,
        model=model.name,
        location=Location(
            file="README.md" if in_card else "model.safetensors",
            line=i % 9 + 1 if in_card else None,
            tensor=None if in_card else f"model.layers.{i % 24}.mlp.down_proj.weight",
        ),
        message=f"{model.name} names a parent that its weights contradict",
        evidence=("the other root is org0/model-0: p <= 10^-400", f"read from {model.path}"),
        suppressed="agreed with the owner until 2027-01-01" if i % 11 == 10 else None,
        known=i % 7 == 6,
    )


def _coverage(models: list[AuditedModel]) -> Coverage:
    states = [model.state for model in models]
    return Coverage(
        models=len(models),
        signed=states.count("signed"),
        headers=states.count("headers"),
        unread=states.count("unread"),
        vanished=states.count("vanished"),
        reused=len(models) // 2,
        files=sum(len(model.files) for model in models),
        bytes=sum(model.bytes for model in models),
        pairs=sum(len(model.relatives) for model in models),
        pairs_left=3,
        not_read=(Skipped(what="models/private", reason="permission denied"),),
    )
