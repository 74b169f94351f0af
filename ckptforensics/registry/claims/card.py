"""Front matter of a model card: which parents and which licence it claims, and on which line.

The YAML is composed and never constructed: nodes are read one by one, so that aliases cannot grow
and no tag makes an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from ckptforensics.errors import FormatError
from ckptforensics.registry.reading import Claim, Licence

_MOST_BYTES = 1_000_000
_MOST_PARENTS = 64
_LONGEST_NAME = 300
_FENCE = "---"
_READ = ("base_model", "base_model_relation", "new_version", "license", "license_name")


@dataclass(frozen=True)
class Card:
    """What a card claims, and what of it could not be read.

    Attributes
    ----------
    claims : its parents, repeats left out
    licence : None where it names none
    problems : sentences, each with its line
    """

    claims: tuple[Claim, ...] = ()
    licence: Licence | None = None
    problems: tuple[tuple[str, int | None], ...] = ()


def read_card(data: bytes, file: str) -> Card:
    """What the front matter of a card says; `file` is the card's name."""
    problems: list[tuple[str, int | None]] = []
    try:
        keys = _front_matter(data)
    except FormatError as problem:
        return Card(problems=((problem.message, problem.offset),))
    relation = _scalar(keys.get("base_model_relation"), "base_model_relation", problems)
    claims: dict[str, Claim] = {}
    for node in _items(keys.get("base_model")):
        parent = _scalar(node, "base_model", problems)
        if parent is not None and parent not in claims:
            line = node.start_mark.line + 1
            claims[parent] = Claim(parent=parent, relation=relation, source=file, line=line)
    if len(claims) > _MOST_PARENTS:
        problems.append((f"more than {_MOST_PARENTS} parents are named", None))
    _scalar(keys.get("new_version"), "new_version", problems)
    licence = None
    node = keys.get("license") or keys.get("license_name")
    said = [text for one in _items(node) if (text := _scalar(one, "license", problems)) is not None]
    named = _scalar(keys.get("license_name"), "license_name", problems)
    if node is not None and said:
        names = [named if named and one.lower() == "other" else one for one in said]
        licence = Licence(id=", ".join(names), file=file, line=node.start_mark.line + 1)
    return Card(tuple(claims.values())[:_MOST_PARENTS], licence, tuple(problems))


def _front_matter(data: bytes) -> dict[str, yaml.Node]:
    """Top-level keys to their nodes, empty without front matter; FormatError with a line."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:_MOST_BYTES]:
        raise FormatError("the card is not UTF-8 text", offset=1)
    text = data[: _MOST_BYTES + 1].decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != _FENCE:
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
    if end is None:
        raise FormatError("the front matter has no end", offset=1)
    # The first line stays, so that the lines of the nodes are those of the file.
    body = "".join(["\n", *lines[1:end]])
    try:
        root = yaml.compose(body, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = getattr(problem, "problem", None) or "it cannot be parsed"
        raise FormatError(
            f"the front matter is not valid YAML: {reason}",
            offset=None if mark is None else mark.line + 1,
        ) from None
    except RecursionError:
        raise FormatError("the front matter is nested too deeply") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise FormatError("the front matter is not a mapping", offset=2)
    keys: dict[str, yaml.Node] = {}
    for key, node in root.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys and key.value in _READ:
                raise FormatError(f"'{key.value}' is there twice", offset=key.start_mark.line + 1)
            keys[key.value] = node
    return keys


def _items(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """The node, or the items of a list."""
    if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
        yield from node.value
    elif node is not None:
        yield node


def _scalar(node: yaml.Node | None, key: str, problems: list[tuple[str, int | None]]) -> str | None:
    """The text of a node; None, and a problem, where it is something else."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return None
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        problems.append((f"'{key}' is a {node.id} where a name is expected", line))
        return None
    if not node.tag.endswith(":str"):
        kind = node.tag.rpartition(":")[2]
        problems.append((f"'{key}' is of type {kind} where a name is expected", line))
        return None
    value = str(node.value).strip()
    if len(value) > _LONGEST_NAME:
        problems.append((f"'{key}' is longer than {_LONGEST_NAME} characters", line))
        return None
    return value or None
