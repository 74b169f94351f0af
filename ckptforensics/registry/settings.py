"""What an audit goes by and what it leaves: the parts of its document that no table has."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from ckptforensics.registry.code import comparing_code
from ckptforensics.registry.options import AuditOptions
from ckptforensics.registry.policy import Policy
from ckptforensics.results.comparison import Level
from ckptforensics.results.records import Skipped


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)

    def text(self) -> str:
        """As JSON in ASCII: names of files need not be Unicode, and SQLite's texts are."""
        return json.dumps(self.model_dump(mode="python"), default=_plain)

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """What `text` wrote; None for nothing, and for what a version wrote that is not this one.

        Pydantic's own reader refuses half of a surrogate pair.
        """
        try:
            return None if text is None else cls.model_validate(json.loads(text))
        except ValueError:
            return None


class Settings(_Kept):
    """What an audit goes by.

    Attributes
    ----------
    level : of the comparisons
    codes : digests of the code that compares pairs, each with whether that is by signature
    policy : the user's
    known : identifiers of findings that the baseline has
    today : by which suppressions expire
    """

    level: Level
    codes: dict[str, bool]
    policy: Policy = Field(default_factory=Policy)
    known: frozenset[str] = frozenset()
    today: date = Field(default_factory=lambda: datetime.now(UTC).date())

    @classmethod
    def of(cls, options: AuditOptions) -> Self:
        """Those of an audit with these options."""
        return cls(
            level=options.level,
            codes=codes_of(options.level),
            policy=options.policy,
            known=options.known,
            today=options.today,
        )


class Left(_Kept):
    """What an audit leaves beside what it measured.

    Attributes
    ----------
    reused : places of the models that were not read again
    near : places to how many families of models near were not compared with them
    failed : comparisons that ended in an error: two identities, whether by signature, and why
    not_read : what of the sources could not be listed
    """

    reused: frozenset[str] = frozenset()
    near: dict[str, int] = Field(default_factory=dict)
    failed: tuple[tuple[str, str, bool, str], ...] = ()
    not_read: tuple[Skipped, ...] = ()


def codes_of(level: Level) -> dict[str, bool]:
    """Digests of the code that compares pairs, each with whether that is by signature."""
    return {comparing_code(level, by_signature=by): by for by in (False, True)}


def _plain(value: object) -> object:
    """What JSON has no word for: sets, in one order, days and paths."""
    return sorted(value) if isinstance(value, frozenset) else str(value)
