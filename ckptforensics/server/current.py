"""What the catalog says now: made when it is asked for, and again when the catalog has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ckptforensics.registry.catalog.reader import Audited, CatalogReader
from ckptforensics.registry.catalog.snapshot import snapshot, state_of
from ckptforensics.registry.live import LiveAudit, live_audit
from ckptforensics.render.audit.families import families
from ckptforensics.results.audit import FindingRecord


class Shown:
    """An audit as one state of the catalog has it, and what pages take from it again and again.

    Attributes
    ----------
    live : the audit
    query : what addresses of its pages end with: nothing for the one that was looked at last
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


class Current:
    """The catalog as it is now.

    Parameters
    ----------
    path : of the catalog
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # By the audit's number: its state, when and in how many seconds it was made, and it.
        self._made: dict[int, tuple[object, float, float, Shown]] = {}

    def audits(self) -> list[Audited]:
        """All that was audited or added, the last audit first."""
        return snapshot(self.path, lambda db: CatalogReader(db).audits())[0]

    def shown(self, which: Callable[[CatalogReader], int | None]) -> Shown | None:
        """The audit whose number `which` finds; None where there is none.

        While a writer changes the catalog all the time, what is shown may be as old as it took to
        be made, so that at most half of the time goes into making it.
        """
        with self._lock:
            state = state_of(self.path)
            began = time.monotonic()
            (number, found), _ = snapshot(
                self.path, lambda db: self._read(CatalogReader(db), which, state)
            )
            if found is not None and number is not None:
                kept = self._made.get(number)
                if kept is None or kept[3] is not found:
                    ended = time.monotonic()
                    self._made = {n: k for n, k in self._made.items() if k[0] == state}
                    self._made[number] = (state, ended, ended - began, found)
            return found

    def _read(
        self, catalog: CatalogReader, which: Callable[[CatalogReader], int | None], state: object
    ) -> tuple[int | None, Shown | None]:
        number = which(catalog)
        audits = catalog.audits()
        audited = next((one for one in audits if one.number == number), None)
        if number is None or audited is None:
            return number, None
        query = "" if audited is audits[0] else f"?audit={number}"
        if number in self._made:
            of, ended, took, kept = self._made[number]
            recent = time.monotonic() - ended < took
            if kept.query == query and ((state is not None and of == state) or recent):
                return number, kept
        return number, Shown(live_audit(catalog, audited), query)
