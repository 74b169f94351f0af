"""What the catalog says now: made when it is asked for, and again when the catalog has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ckptforensics.registry.catalog.reader import Audited, CatalogReader
from ckptforensics.registry.catalog.snapshot import State, snapshot, state_of
from ckptforensics.registry.live import LiveAudit, live_audit
from ckptforensics.render.audit.families import families
from ckptforensics.results.audit import FindingRecord


class Shown:
    """An audit as one state of the catalog has it, and what pages take from it again and again.

    Attributes
    ----------
    live : the audit
    query : what addresses of its pages end with: nothing for the last audit
    """

    def __init__(self, live: LiveAudit, query: str) -> None:
        self.live, self.query = live, query
        document = live.document
        self.models = dict(zip(live.numbers, document.models, strict=True))
        self.number_of = {model.name: number for number, model in self.models.items()}
        self.families = [self.numbers(family.names) for family in families(document)]
        self._texts: dict[str, bytes] = {}
        self._making = threading.Lock()

    def family_of(self, number: int) -> frozenset[int]:
        """Numbers of the models that a model hangs together with, itself among them."""
        return next((f for f in self.families if number in f), frozenset((number,)))

    def numbers(self, names: Iterable[str]) -> frozenset[int]:
        """Numbers of the models of these names; the policy's name is that of none."""
        return frozenset(self.number_of[name] for name in names if name in self.number_of)

    def finding(self, identifier: str) -> FindingRecord | None:
        """The finding of that identifier."""
        return next((f for f in self.live.document.findings if f.id == identifier), None)

    def text(self, name: str, make: Callable[[], str]) -> bytes:
        """A text of the whole audit, made once whoever asks for it."""
        with self._making:
            if name not in self._texts:
                self._texts[name] = make().encode()
            return self._texts[name]


class _Made(NamedTuple):
    """An audit as it was made: of which state, when, and in how many seconds."""

    shown: Shown
    state: State | None
    ended: float
    took: float

    def serves(self, state: State | None) -> bool:
        """Whether it may be shown while the catalog is in that state."""
        same = state is not None and state == self.state
        return same or time.monotonic() - self.ended < self.took


class Current:
    """The catalog as it is now.

    Parameters
    ----------
    path : of the catalog
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._made: dict[int, _Made] = {}

    def audits(self) -> list[Audited]:
        """All that was audited or added, the last audit first."""
        return snapshot(self.path, lambda db: CatalogReader(db).audits())[0]

    def shown(self, which: Callable[[CatalogReader], int | None]) -> Shown | None:
        """The audit whose number `which` finds; None where there is none.

        While a writer changes the catalog all the time, what is shown may be as old as it took to
        be made, so that at most half of the time goes into making it.
        """
        with self._lock:
            # Before it is read: what is read may be newer than that, and never older.
            state = state_of(self.path)
            made, _ = snapshot(self.path, lambda db: self._read(CatalogReader(db), which, state))
            if made is None:
                return None
            # Of other states nothing is kept, so that little is kept at all.
            self._made = {n: kept for n, kept in self._made.items() if kept.state == made.state}
            self._made[made.shown.live.audited.number] = made
            return made.shown

    def _read(
        self,
        catalog: CatalogReader,
        which: Callable[[CatalogReader], int | None],
        state: State | None,
    ) -> _Made | None:
        """The audit as it was made, or made now from a catalog in that state or a later one."""
        number, audits = which(catalog), catalog.audits()
        audited = next((one for one in audits if one.number == number), None)
        if audited is None:
            return None
        query = "" if audited is audits[0] else f"?audit={audited.number}"
        kept = self._made.get(audited.number)
        if kept is not None and kept.shown.query == query and kept.serves(state):
            return kept
        began = time.monotonic()
        shown = Shown(live_audit(catalog, audited), query)
        ended = time.monotonic()
        return _Made(shown, state, ended, ended - began)
