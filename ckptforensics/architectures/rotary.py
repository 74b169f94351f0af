"""Which coordinates of a head rotary position encoding turns together, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

Pairing = Literal["halves", "neighbours"]


def rotary_pairing(
    value: str, *, model_type: str | None = None, gguf: str | None = None
) -> Pairing | None:
    """How the program that runs a checkpoint pairs the coordinates of its queries and keys.

    Parameters
    ----------
    value : name of a block's value tensor
    model_type : of `config.json`
    gguf : `general.architecture` of a GGUF file

    Returns
    -------
    `halves` for coordinates i and i + width / 2, `neighbours` for 2 i and 2 i + 1; None where it is
    not known
    """
    known = _known()
    for mark, pairing in known["tensor"].items():
        if mark in value:
            return pairing
    return known["config"].get(model_type or "") if gguf is None else known["gguf"].get(gguf)


@cache
def _known() -> Mapping[str, Mapping[str, Pairing]]:
    file = resources.files("ckptforensics.architectures") / "rotary.toml"
    tables = tomllib.loads(file.read_text(encoding="utf-8"))
    pairings: tuple[Pairing, ...] = ("halves", "neighbours")
    return MappingProxyType(
        {
            form: MappingProxyType({name: p for p in pairings for name in table.get(p, ())})
            for form, table in tables.items()
        }
    )
