"""Token strings of every kind of tokenizer in one spelling."""

from __future__ import annotations

import gguf
import pytest

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError
from ckptforensics.tensors.containers.gguf import read_gguf, read_strings
from ckptforensics.tokens import read_vocabulary
from tests.support.hub import REPO, loopback_hub
from tests.support.tokenizers import SPECIAL, byte_level, model, vocabulary_of


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


def test_on_the_hub_the_tokenizer_is_fetched_when_it_is_asked_for(monkeypatch, tmp_path):
    local = model(tmp_path / "m", tokenizer=byte_level().to_str())
    with loopback_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add(local)
        remote = open_checkpoint(REPO)
        assert not any("tokenizer" in request.path for request in hub.log)
        assert read_vocabulary(remote) == vocabulary_of(local)
        assert any("tokenizer.json" in request.path for request in hub.log)
