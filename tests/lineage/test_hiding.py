"""Copies that every criterion of agreement misses are not called independent."""

from __future__ import annotations

import numpy as np
import pytest

from ckptforensics.lineage.compare import compare, open_model
from ckptforensics.lineage.correspondence.renumbered import may_be_renumbered
from ckptforensics.lineage.correspondence.unwritten import unwritten
from ckptforensics.lineage.pair import Pair
from tools import attacks, launder, transforms
from tools.zoo import ZOO


@pytest.fixture(scope="module")
def base():
    return transforms.read(ZOO / "seed0")


def hidden(model, generator):
    model = attacks.padded(attacks.split(model, generator), generator, noise=True)
    return launder.everything(attacks.renumbered(model, generator), generator)


def test_a_copy_without_tokenizer_that_was_split_padded_and_renumbered(base, tmp_path):
    copy = transforms.write(hidden(base, np.random.default_rng(4)), tmp_path / "copy", "F32")
    for pair in ((ZOO / "seed0", copy), (copy, ZOO / "seed0")):
        found = compare(pair).pairs[0]
        assert found.verdict == "inconclusive"
        assert any("16 of the 112 directions" in reason for reason in found.reasons)
        assert any("renumbered" in reason for reason in found.reasons)


def test_a_copy_whose_tokens_have_other_strings(base, tmp_path):
    """What the vocabulary says is the suspect's to choose as well."""
    generator = np.random.default_rng(4)
    model = attacks.padded(attacks.split(base, generator), generator, noise=True)
    order = generator.permutation(len(model.tensors[transforms.EMBEDDING]))
    # The strings stay where they were, and the embeddings are those of other tokens.
    names = [n for n in (transforms.EMBEDDING, transforms.HEAD) if n in model.tensors]
    model = model.change({name: model.tensors[name][order] for name in names})
    copy = transforms.write(launder.everything(model, generator), tmp_path / "copy", "F32")
    found = compare([ZOO / "seed0", copy]).pairs[0]
    assert found.verdict == "inconclusive"


def test_strangers_without_vocabularies_are_told_by_their_embeddings(base, tmp_path):
    renumbered = attacks.renumbered(base, np.random.default_rng(4))
    other = transforms.write(renumbered, tmp_path / "renumbered", "F32")
    random = transforms.write(transforms.random(base), tmp_path / "random", "F32")
    (random / "tokenizer.json").unlink()
    seed0 = open_model(ZOO / "seed0")
    assert may_be_renumbered(Pair(seed0, open_model(other)))
    assert not may_be_renumbered(Pair(seed0, open_model(random)))
    # With strings there is nothing to assume.
    assert not may_be_renumbered(Pair(seed0, open_model(ZOO / "finetune")))


@pytest.mark.parametrize("name", ["seed0", "seed1", "experts", "continued"])
def test_training_uses_all_of_the_residual_stream(name):
    assert unwritten(open_model(ZOO / name)) == 0


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_padding_is_counted(base, dtype, tmp_path):
    generator = np.random.default_rng(1)
    padded = launder.everything(attacks.padded(base, generator, 5), generator)
    assert unwritten(open_model(transforms.write(padded, tmp_path / "model", dtype))) == 5


def test_real_models_write_everywhere(minilm, gemma3):
    assert unwritten(open_model(minilm)) == unwritten(open_model(gemma3)) == 0
