"""Token strings of every kind of tokenizer in one spelling, and the tokens two models share."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError, NotApplicable
from ckptforensics.lineage import models as opened
from ckptforensics.lineage.correspondence.shared_tokens import LEAST_SHARED, shared_tokens
from ckptforensics.lineage.pair import Pair
from ckptforensics.tensors.containers.gguf import read_gguf, read_strings
from ckptforensics.tokens import read_vocabulary
from tests.support.containers import LLAMA_CONFIG, Model, llama_arrays
from tests.support.hub import REPO, loopback_hub

TEXT = ["naïve café, 東京\n\tindented", *list(topics.values())[:30]]
SPECIAL = "<|end|>"


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=[SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def model(folder: Path, vocabulary: int = 600, **files: Any) -> Path:
    """A small LLaMA with files beside it: text, or what becomes JSON."""
    Model(folder, llama_arrays(vocabulary=vocabulary), LLAMA_CONFIG)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def vocabulary_of(folder: Path) -> Any:
    return read_vocabulary(open_checkpoint(folder))


def pair_of(a: Path, b: Path, seed: int = 0) -> Pair:
    one, other = (opened.Model(str(path), open_checkpoint(path)) for path in (a, b))
    return Pair(one, other, seed=seed)


def test_byte_level_tokens_are_what_their_decoder_says(tmp_path):
    tokenizer = byte_level()
    found = vocabulary_of(model(tmp_path / "m", tokenizer=tokenizer.to_str()))
    assert len(found) == tokenizer.get_vocab_size()
    compared = 0
    for text, number in found.items():
        decoded = tokenizer.decode([number], skip_special_tokens=False)
        if "\ufffd" not in decoded:  # the decoder loses bytes that are no text
            assert text == decoded
            compared += 1
    assert compared > 250
    # The 256 bytes have tokens of their own, those that are no text too.
    singles = {text.encode("utf-8", "surrogateescape") for text in found} & {
        bytes([byte]) for byte in range(256)
    }
    assert len(singles) == 256
    assert found[SPECIAL] == 0


def test_the_vocabulary_alone_is_spelled_as_the_whole_tokenizer(tmp_path):
    tokenizer = byte_level()
    whole = vocabulary_of(model(tmp_path / "a", tokenizer=tokenizer.to_str()))
    alone = vocabulary_of(model(tmp_path / "b", vocab=tokenizer.get_vocab()))
    assert alone == whole


@pytest.mark.parametrize("make", [unigram, word_piece])
def test_other_kinds_share_words_with_byte_level(tmp_path, make):
    tokenizer, other = byte_level(), make()
    a = model(tmp_path / "a", tokenizer=tokenizer.to_str())
    b = model(tmp_path / "b", tokenizer=other.to_str())
    of_a, of_b = vocabulary_of(a), vocabulary_of(b)
    assert len(of_a.keys() & of_b.keys()) >= LEAST_SHARED
    assert " the" in of_a.keys() & of_b.keys()
    # The same string is the same text: as a word after a space, and as what continues one.
    assert tokenizer.id_to_token(of_a[" the"]) == "Ġthe"
    mark = {"unigram": "▁the", "word_piece": "the"}[make.__name__]
    assert other.id_to_token(of_b[" the"]) == mark
    shared = pair_of(a, b).once(shared_tokens)
    assert shared.by_string
    plain = str.maketrans({"Ġ": " ", "▁": " "})
    for one, another in zip(shared.a.tolist(), shared.b.tolist(), strict=True):
        text = other.id_to_token(another)
        if make is word_piece:
            text = text[2:] if text.startswith("##") else " " + text
        decoded = tokenizer.decode([one], skip_special_tokens=False)
        assert decoded == text.translate(plain)


def test_bytes_of_sentencepiece_are_bytes(tmp_path):
    vocabulary = {"▁the": 0, "▁a": 1, "A": 2, "<0x41>": 3, "<0xE2>": 4, "<0xZZ>": 5, "▁▁": 6}
    found = vocabulary_of(model(tmp_path / "m", tokenizer={"model": {"vocab": vocabulary}}))
    assert found == {" the": 0, " a": 1, "A": 2, "\udce2": 4, "<0xZZ>": 5, "  ": 6}


def test_added_tokens_are_read_and_do_not_replace(tmp_path):
    content = {
        "model": {"vocab": {"Ġa": 0, "b": 1}},
        "added_tokens": [{"id": 2, "content": "<|new|>"}, {"id": 9, "content": "b"}],
    }
    found = vocabulary_of(model(tmp_path / "m", tokenizer=content))
    assert found == {" a": 0, "b": 1, "<|new|>": 2}


def test_gguf_tokens_are_those_of_the_gguf_package(smollm2_gguf):
    field = gguf.GGUFReader(smollm2_gguf).fields["tokenizer.ggml.tokens"]
    expected = [bytes(field.parts[i]) for i in field.data]
    array = read_gguf(smollm2_gguf).metadata["tokenizer.ggml.tokens"]
    assert read_strings(smollm2_gguf, array) == expected
    found = read_vocabulary(open_checkpoint(smollm2_gguf))
    assert found is not None
    assert len(found) == len(expected)
    assert expected[found[" the"]].decode() == "Ġthe"


def test_sentencepiece_and_byte_level_models_share_real_tokens(smollm2_gguf, gemma3):
    a, b = (read_vocabulary(open_checkpoint(file)) for file in (smollm2_gguf, gemma3))
    assert a is not None and b is not None
    words = {" Paris", " information", "\n\n", " the", "ing", " 東京"[1:]}
    assert words - {"東京"} <= a.keys() & b.keys()
    assert len(a.keys() & b.keys()) > 40_000


def test_an_array_of_numbers_is_no_vocabulary(smollm2_gguf):
    metadata = read_gguf(smollm2_gguf).metadata
    with pytest.raises(FormatError, match="strings was expected"):
        read_strings(smollm2_gguf, metadata["tokenizer.ggml.token_type"])


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        {"model": None},
        {"model": {"vocab": 3}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"a": "0"}}},
        {"model": {"vocab": {"a": True}}},
        {"model": {"vocab": {}}, "added_tokens": [3]},
        {"model": {"vocab": {}}, "added_tokens": {"a": 1}},
        {"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]},
    ],
)
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path, content):
    with pytest.raises(FormatError) as caught:
        vocabulary_of(model(tmp_path / "m", tokenizer=content))
    assert "\n" not in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


def test_no_vocabulary_is_none(tmp_path):
    assert vocabulary_of(model(tmp_path / "m")) is None


def test_the_order_of_shared_tokens_depends_on_strings_and_seed_alone(tmp_path):
    vocabulary = {f"Ġword{i}": i for i in range(300)}
    moved = {text: 599 - number for text, number in vocabulary.items()}
    a = model(tmp_path / "a", vocab=vocabulary)
    b = model(tmp_path / "b", vocab=moved)
    shared = pair_of(a, b).once(shared_tokens)
    assert np.array_equal(shared.b, 599 - shared.a)
    assert sorted(shared.a.tolist()) == list(range(300))
    # A third model, with other weights and ids, meets the same words in the same order.
    c = model(tmp_path / "c", vocab={text: (7 * n) % 599 for text, n in vocabulary.items()})
    assert np.array_equal(pair_of(a, c).once(shared_tokens).a, shared.a)
    assert not np.array_equal(pair_of(a, b, seed=1).once(shared_tokens).a, shared.a)


def test_ids_beyond_the_embeddings_are_left_out(tmp_path):
    vocabulary = {f"Ġword{i}": i for i in range(300)}
    a = model(tmp_path / "a", vocabulary=100, vocab=vocabulary)
    b = model(tmp_path / "b", vocabulary=600, vocab=vocabulary)
    shared = pair_of(a, b).once(shared_tokens)
    assert sorted(shared.a.tolist()) == list(range(100))


def test_without_strings_equal_ids_are_taken_and_it_is_said(tmp_path):
    a = model(tmp_path / "a", vocab={"Ġa": 0})
    b = model(tmp_path / "b")
    shared = pair_of(a, b).once(shared_tokens)
    assert not shared.by_string
    assert np.array_equal(shared.a, shared.b)
    assert sorted(shared.a.tolist()) == list(range(600))


def test_what_is_not_known_to_be_shared_is_not_guessed(tmp_path):
    a, b = model(tmp_path / "a"), model(tmp_path / "b", vocabulary=700)
    with pytest.raises(NotApplicable, match=r"both have no vocabulary.*600 and 700"):
        pair_of(a, b).once(shared_tokens)
    words = {f"Ġword{i}": i for i in range(300)}
    others = {f"Ġother{i}": i for i in range(300)}
    few = pair_of(model(tmp_path / "c", vocab=words), model(tmp_path / "d", vocab=others))
    with pytest.raises(NotApplicable, match="share 0 strings"):
        few.once(shared_tokens)


def test_on_the_hub_the_tokenizer_is_fetched_when_it_is_asked_for(monkeypatch, tmp_path):
    local = model(tmp_path / "m", tokenizer=byte_level().to_str())
    with loopback_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add(local)
        remote = open_checkpoint(REPO)
        assert not any("tokenizer" in request.path for request in hub.log)
        assert read_vocabulary(remote) == vocabulary_of(local)
        assert any("tokenizer.json" in request.path for request in hub.log)
