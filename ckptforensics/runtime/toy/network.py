"""The trained networks: decoders of one shape with what is argued about as options.

Functions of named tensors, so that torch is imported only when a network runs. Names are those of
the files, which `architectures/families/bigram_backcopy.toml` and `toy_language.toml` describe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ckptforensics.runtime import libraries

Tensors = Mapping[str, Any]
# What a run shows on its way: layer from 0, what it is, the tensor.
Watch = Callable[[int, str, Any], None]
EPS = 1e-5
# Largest sizes of a network; all are 1 or more.
MOST = {"vocabulary": 2**20, "layers": 64, "width": 8192, "heads": 128, "context": 1024}


@dataclass(frozen=True)
class Shape:
    """What a network is built like; the defaults are those of the Bigram-Backcopy task.

    Attributes
    ----------
    vocabulary, layers, width, heads, context : sizes; `context` is the longest sequence
    norm : before each branch, and after the last block
    ffn : `relu` of width 4 d, or `swiglu` of width 8/3 d
    attention : `softmax`, or `relu` of the scores over the number of keys
    positions : what tells places apart
    mask : which keys a query sees
    window : how many keys back, None for all
    residual : `parallel`: both branches read the same stream, each through its own norm
    sinks : a learned logit a head beside those of the keys (gpt-oss)
    gated : the heads' outputs times a sigmoid of the branch's input (Qwen3-Next)
    qk_norm : queries and keys are normed a head (Qwen3)
    """

    vocabulary: int
    layers: int = 1
    width: int = 256
    heads: int = 1
    context: int = 256
    norm: Literal["layer", "rms"] = "layer"
    ffn: Literal["relu", "swiglu"] = "relu"
    attention: Literal["softmax", "relu"] = "softmax"
    positions: Literal["learned", "rope", "alibi", "none"] = "learned"
    mask: Literal["causal", "bidirectional"] = "causal"
    window: int | None = None
    residual: Literal["sequential", "parallel"] = "sequential"
    sinks: bool = False
    gated: bool = False
    qk_norm: bool = False

    @property
    def ffn_width(self) -> int:
        """Hidden units of an FFN."""
        return 4 * self.width if self.ffn == "relu" else 8 * math.ceil(self.width / 3)

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor, in the order of the file."""
        d, h = self.width, self.ffn_width
        found: dict[str, tuple[int, ...]] = {"tokens.weight": (self.vocabulary, d)}
        if self.positions == "learned":
            found["positions.weight"] = (self.context, d)
        for i in range(self.layers):
            at = f"blocks.{i}"
            found |= self._norm(f"{at}.attention_norm", d)
            for part in ("query", "key", "value", "output", *(("gate",) if self.gated else ())):
                found[f"{at}.attention.{part}.weight"] = (d, d)
            if self.qk_norm:
                for part in ("query_norm", "key_norm"):
                    found |= self._norm(f"{at}.attention.{part}", self.head_width)
            if self.sinks:
                found[f"{at}.attention.sinks"] = (self.heads,)
            found |= self._norm(f"{at}.ffn_norm", d)
            for part in ("up", *(("gate",) if self.ffn == "swiglu" else ())):
                found[f"{at}.ffn.{part}.weight"] = (h, d)
            found[f"{at}.ffn.down.weight"] = (d, h)
        return found | self._norm("norm", d) | {"lm_head.weight": (self.vocabulary, d)}

    def _norm(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        gain: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)}
        return gain if self.norm == "rms" else gain | {f"{name}.bias": (width,)}

    def config(self, model_type: str, begin: int) -> dict[str, Any]:
        """What `config.json` says; `begin` is the begin-of-sequence token."""
        return {
            "model_type": model_type,
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.ffn_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps" if self.norm == "rms" else "layer_norm_eps": EPS,
            "hidden_act": "relu" if self.ffn == "relu" else "silu",
            "bos_token_id": begin,
            "tie_word_embeddings": False,
            "toy": asdict(self),
        } | {"attention": self.attention, "residual": self.residual}


def new_tensors(shape: Shape, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Random tensors: embeddings from N(0, 1), matrices as torch's `Linear` draws them.

    The language model's embeddings and its head are drawn with deviation .02 and 1 / sqrt(d).
    """
    torch = libraries.torch()
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, size in shape.sizes().items():
        if len(size) == 1:
            gain = name.endswith("norm.weight")
            tensor = torch.ones(size) if gain else torch.zeros(size)
        elif name in ("tokens.weight", "positions.weight"):
            scale = 1.0 if shape.norm == "layer" else 0.02
            tensor = scale * torch.randn(size, generator=generator)
        else:
            bound = size[1] ** -0.5
            tensor = bound * (2 * torch.rand(size, generator=generator) - 1)
        found[name] = tensor.to(device).requires_grad_()
    return found


def run(
    shape: Shape,
    tensors: Tensors,
    ids: Any,
    *,
    watch: Watch | None = None,
    without: frozenset[tuple[int, str]] = frozenset(),
) -> Any:
    """Logits, (B, T, V), of token ids (B, T).

    Parameters
    ----------
    watch : is shown `logits` and `weights` of attention (B, heads, T, T), what each key writes if
        it is attended to alone (`written`, (B, heads, T, d)), and the residual stream after each
        block (`state`, (B, T, d))
    without : branches that add nothing: layer from 0 with `attention`, `ffn` or `head N`
    """
    torch = libraries.torch()
    x = tensors["tokens.weight"][ids]
    if shape.positions == "learned":
        x = x + tensors["positions.weight"][: ids.shape[1]]
    for i in range(shape.layers):
        at = f"blocks.{i}."

        def attend(n: Any, i: int = i, at: str = at) -> Any:
            return _attention(shape, tensors, at + "attention.", n, i, watch, without)

        n = _normed(shape, tensors, at + "attention_norm", x)
        attended = 0.0 if (i, "attention") in without else attend(n)
        middle = x + attended
        read = x if shape.residual == "parallel" else middle
        n = _normed(shape, tensors, at + "ffn_norm", read)
        x = middle + (0.0 if (i, "ffn") in without else _ffn(shape, tensors, at + "ffn.", n))
        if watch is not None:
            watch(i, "state", x)
    n = _normed(shape, tensors, "norm", x)
    return torch.nn.functional.linear(n, tensors["lm_head.weight"])


def _normed(shape: Shape, tensors: Tensors, name: str, x: Any) -> Any:
    functional = libraries.torch().nn.functional
    gain = tensors[f"{name}.weight"]
    if shape.norm == "rms":
        return functional.rms_norm(x, gain.shape, gain, EPS)
    return functional.layer_norm(x, gain.shape, gain, tensors[f"{name}.bias"], EPS)


def _ffn(shape: Shape, tensors: Tensors, at: str, n: Any) -> Any:
    functional = libraries.torch().nn.functional
    up = functional.linear(n, tensors[f"{at}up.weight"])
    if shape.ffn == "relu":
        hidden = functional.relu(up)
    else:
        hidden = functional.silu(functional.linear(n, tensors[f"{at}gate.weight"])) * up
    return functional.linear(hidden, tensors[f"{at}down.weight"])


def _attention(
    shape: Shape,
    tensors: Tensors,
    at: str,
    n: Any,
    layer: int,
    watch: Watch | None,
    without: frozenset[tuple[int, str]],
) -> Any:
    torch = libraries.torch()
    functional = torch.nn.functional
    batch, length, _ = n.shape

    def heads(part: str) -> Any:
        found = functional.linear(n, tensors[f"{at}{part}.weight"])
        return found.view(batch, length, shape.heads, shape.head_width).transpose(1, 2)

    query, key, value = heads("query"), heads("key"), heads("value")
    if shape.qk_norm:
        query = _normed(shape, tensors, f"{at}query_norm", query)
        key = _normed(shape, tensors, f"{at}key_norm", key)
    if shape.positions == "rope":
        query, key = _rotated(query), _rotated(key)
    bias = _bias(shape, length, n.device)
    if watch is None and shape.attention == "softmax" and not shape.sinks:
        whole = bias is None
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=whole and shape.mask == "causal"
        )
    else:
        logits = query @ key.transpose(2, 3) * shape.head_width**-0.5
        hidden = _hidden(shape, length, n.device)
        biased = logits if bias is None else logits + bias
        weights = _weights(shape, tensors, at, biased.masked_fill(hidden, -math.inf))
        mixed = weights @ value
        if watch is not None:
            watch(layer, "logits", logits)
            watch(layer, "weights", weights)
            watch(layer, "written", _written(shape, tensors[f"{at}output.weight"], value))
    for head in range(shape.heads):
        if (layer, f"head {head}") in without:
            mixed = mixed.clone()
            mixed[:, head] = 0
    joined = mixed.transpose(1, 2).reshape(batch, length, -1)
    if shape.gated:
        joined = joined * torch.sigmoid(functional.linear(n, tensors[f"{at}gate.weight"]))
    return functional.linear(joined, tensors[f"{at}output.weight"])


def _weights(shape: Shape, tensors: Tensors, at: str, scores: Any) -> Any:
    """Attention from scores in which hidden keys are -inf."""
    torch = libraries.torch()
    if shape.attention == "relu":
        seen = (scores > -math.inf).sum(dim=-1, keepdim=True)
        return torch.relu(scores) / seen
    if not shape.sinks:
        return torch.softmax(scores, dim=-1)
    sink = tensors[f"{at}sinks"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def _written(shape: Shape, output: Any, value: Any) -> Any:
    """W_O v of each key and head."""
    torch = libraries.torch()
    by_head = output.view(output.shape[0], shape.heads, shape.head_width)
    return torch.einsum("dhw,bhtw->bhtd", by_head, value)


def _rotated(x: Any) -> Any:
    """Rotary position encoding (base 10,000) of (B, heads, T, width)."""
    torch = libraries.torch()
    length, width = x.shape[2], x.shape[3]
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angles = torch.arange(length, device=x.device)[:, None] * frequencies
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def _hidden(shape: Shape, length: int, device: Any) -> Any:
    """(T, T) True where a query does not see a key."""
    torch = libraries.torch()
    place = torch.arange(length, device=device)
    back = place[:, None] - place
    hidden = back < 0 if shape.mask == "causal" else torch.zeros_like(back, dtype=torch.bool)
    return hidden if shape.window is None else hidden | (back.abs() >= shape.window)


def _bias(shape: Shape, length: int, device: Any) -> Any:
    """What is added to the scores, -inf where a key is hidden; None where the mask says it all."""
    if shape.positions != "alibi" and shape.window is None:
        return None
    torch = libraries.torch()
    bias = torch.zeros(1, length, length, device=device)
    if shape.positions == "alibi":
        place = torch.arange(length, device=device)
        slopes = 2.0 ** (-8 * torch.arange(1, shape.heads + 1, device=device) / shape.heads)
        bias = -slopes[:, None, None] * (place[:, None] - place).abs()
    return bias.masked_fill(_hidden(shape, length, device), -math.inf)
