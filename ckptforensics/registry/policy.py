"""`ckpt.toml`: what an organisation makes of the rules."""

from __future__ import annotations

import tomllib
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ckptforensics.errors import UsageError
from ckptforensics.registry.stores.files import read_small
from ckptforensics.results.audit import RuleId, Severity

Format = Literal["safetensors", "torch", "gguf"]
_MOST_BYTES = 1_000_000
NAME = "ckpt.toml"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Suppression(_Table):
    """Findings that are known and accepted for a time.

    Attributes
    ----------
    rule : of the findings
    model : a name, or a pattern of names with `*`
    reason : why they are accepted
    expires : the last day on which they are
    """

    rule: RuleId
    model: str = Field(min_length=1)
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    expires: date

    def covers(self, rule: str, model: str) -> bool:
        """Whether it is about the rule and the model."""
        return rule == self.rule and fnmatchcase(model, self.model)


class Policy(_Table):
    """The user's policy.

    Attributes
    ----------
    select : rules that are applied; all where it is empty
    ignore : rules that are not
    severity : rules to another severity than their own
    suppressions : see `Suppression`
    trusted_roots : names, or patterns of names, of models that need not declare a parent
    allowed_formats : containers of weights; others are a finding
    """

    select: tuple[RuleId, ...] = ()
    ignore: tuple[RuleId, ...] = ()
    severity: dict[RuleId, Severity] = Field(default_factory=dict)
    suppressions: tuple[Suppression, ...] = ()
    trusted_roots: tuple[str, ...] = ()
    allowed_formats: tuple[Format, ...] = get_args(Format)
    path: Path | None = None

    def applies(self, rule: str) -> bool:
        """Whether a rule is applied."""
        return (not self.select or rule in self.select) and rule not in self.ignore

    def trusts(self, name: str) -> bool:
        """Whether the model of that name needs no parent."""
        bare = name.partition("@")[0]
        return any(fnmatchcase(n, pattern) for n in (name, bare) for pattern in self.trusted_roots)


def read_policy(path: Path, rules: frozenset[str]) -> Policy:
    """The policy in a TOML file.

    Parameters
    ----------
    rules : the identifiers that exist

    Raises
    ------
    UsageError
        if it is no TOML, has a key or a rule that does not exist, or a value of another type.
    """
    try:
        table = tomllib.loads(read_small(path, _MOST_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"this is not valid TOML: {problem}", path=path) from None
    try:
        policy = Policy.model_validate({**table, "path": path})
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"'{place}': {first['msg']}", path=path, hint="docs/audit.md lists every key"
        ) from None
    named = {*policy.select, *policy.ignore, *policy.severity}
    named |= {suppression.rule for suppression in policy.suppressions}
    unknown = sorted(named - rules)
    if unknown:
        raise UsageError(
            f"there is no rule {unknown[0]}", path=path, hint="'ckpt explain' lists them"
        )
    return policy
