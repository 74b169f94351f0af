"""Cards as they are found, and as somebody would write them to do harm."""

import pytest

from ckptforensics.registry.claims.card import read_card


def card(front: str, body: str = "\n# Model\n"):
    return read_card(f"---\n{front}---{body}".encode(), "README.md")


def test_parents_relation_licence_and_their_lines():
    read = card("license: apache-2.0\nbase_model:\n- org/a\n- org/b\nbase_model_relation: merge\n")
    assert [(c.parent, c.relation, c.line) for c in read.claims] == [
        ("org/a", "merge", 4),
        ("org/b", "merge", 5),
    ]
    assert read.licence is not None
    assert (read.licence.id, read.licence.line) == ("apache-2.0", 2)
    assert not read.problems


def test_one_parent_as_a_string_and_the_licence_by_its_name():
    read = card("base_model: org/a\nlicense: other\nlicense_name: own-terms\n")
    assert [(c.parent, c.relation, c.line) for c in read.claims] == [("org/a", None, 2)]
    assert read.licence is not None
    assert read.licence.id == "own-terms"


def test_a_self_merge_names_its_base_once():
    read = card("base_model:\n" + "- org/a\n" * 7)
    assert len(read.claims) == 1


@pytest.mark.parametrize("text", ["", "# only text\n", "---\n---\n", "----\nbase_model: x\n---\n"])
def test_no_front_matter_claims_nothing(text):
    read = read_card(text.encode(), "README.md")
    assert read == read_card(b"", "README.md")


@pytest.mark.parametrize(
    ("front", "what", "line"),
    [
        ("base_model:\n  name: org/a\n", "mapping", 3),
        ("base_model: 7\n", "int", 2),
        ("base_model: true\n", "bool", 2),
        ("base_model: [[org/a]]\n", "sequence", 2),
        ("base_model: 2024-01-01\n", "timestamp", 2),
        ("base_model: " + "x" * 500 + "\n", "longer", 2),
        ("base_model: a\nbase_model: b\n", "twice", 3),
        ("base_model: [org/a\n", "YAML", None),
        ("base_model: 'org/a\n", "YAML", None),
        ("- a\n- b\n", "not a mapping", 2),
        ("base_model: \x00\n", "UTF-8", 1),
    ],
)
def test_what_is_no_name_is_said_with_its_line(front, what, line):
    read = card(front)
    assert not read.claims
    ((problem, where),) = read.problems
    assert what in problem
    assert line is None or where == line


def test_front_matter_without_an_end():
    read = read_card(b"---\nbase_model: org/a\n", "README.md")
    assert not read.claims
    assert "no end" in read.problems[0][0]


def test_an_alias_bomb_and_a_deep_nest_end_at_once():
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    assert card(bomb) == card("")
    assert card(bomb + "base_model: *a29\n").problems
    assert [c.parent for c in card("x: &x org/a\nbase_model: *x\n").claims] == ["org/a"]
    assert "UTF-8" in read_card("---\nbase_model: a\n---\n".encode("utf-16"), "x").problems[0][0]
    assert card("base_model: " + "[" * 5000 + "\n").problems


def test_tags_make_no_objects():
    read = card("base_model: !!python/object/apply:os.system ['true']\n")
    assert not read.claims
    assert read.problems
