"""Claims and dangers in configurations, GGUF headers, tokenizers and chat templates."""

import json

import pytest

from ckptforensics.registry.claims import metadata


def test_gguf_parents_by_repository_else_by_name():
    said = {
        "general.base_model.count": 3,
        "general.base_model.0.name": "A",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/a-model",
        "general.base_model.1.name": "B",
        "general.base_model.1.organization": "Org",
        "general.base_model.2.url": "https://example.org/elsewhere",
    }
    claims = list(metadata.gguf_claims(said, "model.gguf"))
    assert [c.parent for c in claims] == ["org/a-model", "Org/B"]
    assert claims[0].source.startswith("model.gguf: general.base_model.0")


@pytest.mark.parametrize("count", [2**63, "3", None, -1])
def test_a_count_that_is_none_costs_nothing(count):
    assert list(metadata.gguf_claims({"general.base_model.count": count}, "x.gguf")) == []


def test_adapter_and_configuration():
    config = {"base_model_name_or_path": "org/a", "revision": "abc"}
    text = json.dumps(config, indent=1).encode()
    (claim,) = metadata.adapter_claims(config, text, "adapter_config.json")
    assert (claim.parent, claim.relation, claim.line) == ("org/a@abc", "adapter", 2)
    for name in ("/home/me/out", "./out", "out", "C:\\models\\x", 7, None):
        assert not list(metadata.config_claims({"_name_or_path": name}, b"", "config.json"))
    (claim,) = metadata.config_claims({"_name_or_path": "org/a"}, b"", "config.json")
    assert claim.parent == "org/a"


@pytest.mark.parametrize(
    "harm",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{% if messages|attr('x') %}{% endif %}",
        "{{ self._TemplateReference__context }}",
        "{%- set x = eval('1') -%}",
        "{{ joiner }}",
        "{{ messages.__init__ }}",
    ],
)
def test_templates_that_reach_for_python(harm):
    assert metadata.template(f"hello {harm}", "t.jinja").code


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}{% endfor %}",
        "{%- if tools is not none %}{{ tools | tojson(indent=4) }}{%- endif %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ strftime_now('%d %b %Y') }}{% set ns = namespace(open=false) %}",
        "the word __init__ outside of tags, and eval( too",
        "{{ bos_token }}{%- set loop_messages = messages[1:] %}{{ message.cosine }}",
        "{% macro render(x) %}{{ x.items() }}{% endmacro %}",
    ],
)
def test_honest_templates(text):
    assert metadata.template(text, "t.jinja").code == ()


def test_remote_code_by_its_names():
    config = {"auto_map": {"AutoModel": "modeling.A", "AutoTokenizer": ["tok.Slow", None]}}
    code = metadata.remote_code(config, json.dumps(config).encode(), "config.json")
    assert code is not None
    assert code.names == ("modeling.A", "tok.Slow")
    assert metadata.remote_code({"auto_map": {}}, b"{}", "config.json") is None


def test_samples_of_vocabularies_meet():
    big = {f"token{i}": i for i in range(5000)}
    bigger = big | {f"new{i}": 5000 + i for i in range(50)}
    moved = {token: (i + 1) % 5000 for token, i in big.items()}
    a, b, c = (metadata.tokenizer(v, "tokenizer.json") for v in (big, bigger, moved))
    common = a.sample.keys() & b.sample.keys()
    assert len(common) > 200
    assert all(a.sample[t] == b.sample[t] for t in common)
    assert all(a.sample[t] != c.sample[t] for t in a.sample)
    assert len({a.sha256, b.sha256, c.sha256}) == 3
