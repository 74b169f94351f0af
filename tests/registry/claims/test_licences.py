"""Which licences are looser than others."""

import pytest

from ckptforensics.registry.claims.licences import compare_licences


@pytest.mark.parametrize(
    ("own", "ancestor", "answer"),
    [
        ("mit", "MIT", "same"),
        ("mit", "apache-2.0", "kept"),
        ("cc-by-nc-4.0", "apache-2.0", "kept"),
        ("apache-2.0", "cc-by-nc-4.0", "conflict"),
        ("mit", "llama3.1", "conflict"),
        ("apache-2.0", "gemma", "conflict"),
        ("cc-by-nc-4.0", "gemma", "kept"),
        ("llama3.2", "llama3.1", "ask"),
        ("own-terms", "llama3.1", "ask"),
        ("apache-2.0", "own-terms", "ask"),
        ("own-terms", "mit", "kept"),
        ("gpl-3.0", "cc-by-nc-sa-4.0", "conflict"),
        ("llama99", "mit", "kept"),
        ("mit", "llama99", "conflict"),
    ],
)
def test_conditions_that_are_dropped(own, ancestor, answer):
    assert compare_licences(own, ancestor) == answer
