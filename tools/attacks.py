"""Copies made by somebody who has read how `ckpt compare` decides: as good as what they copy.

Each changes the function little or not at all, and hides the copy from one matching or another.
`python -m benchmarks.lineage_attacks` measures what each costs and what is said of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tools import launder, transforms
from tools.transforms import EMBEDDING, HEAD, WRITERS, Model, Tensors, is_layer_matrix, weight

Attack = Callable[[Model, np.random.Generator], Model]
_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def decoys(model: Model, generator: np.random.Generator, share: float = 0.5) -> Model:
    """Neurons with the gate of one and the up row of another, which write nothing.

    The true gates and up rows move by half a per cent, so that none is the nearest to itself.
    """
    tensors: Tensors = {}
    for layer in range(model.layers):
        gate, up, down = (model.tensors[weight(layer, part)] for part in _FFN)
        more = int(share * len(gate))
        order = generator.permutation(len(gate))
        first, second = order[:more], order[-more:]
        rows = []
        for matrix, chosen in ((gate, first), (up, second)):
            size = np.linalg.norm(matrix, axis=1, keepdims=True) / np.sqrt(matrix.shape[1])
            moved = matrix + 0.005 * size * generator.standard_normal(matrix.shape)
            rows.append(np.concatenate([moved, matrix[chosen]]))
        nothing = np.zeros((len(down), more), np.float32)
        written = np.concatenate([down, nothing], axis=1)
        tensors |= dict(zip((weight(layer, p) for p in _FFN), (*rows, written), strict=True))
    return _wider(model, tensors)


def copies(model: Model, generator: np.random.Generator, count: int = 8) -> Model:
    """Every neuron `count` times; the copies share what it writes."""
    tensors: Tensors = {}
    for layer in range(model.layers):
        gate, up, down = (model.tensors[weight(layer, part)] for part in _FFN)
        order = generator.permutation(count * len(gate))
        tensors[weight(layer, _FFN[0])] = np.tile(gate, (count, 1))[order]
        tensors[weight(layer, _FFN[1])] = np.tile(up, (count, 1))[order]
        tensors[weight(layer, _FFN[2])] = np.tile(down / count, (1, count))[:, order]
    return _wider(model, tensors)


def split(model: Model, generator: np.random.Generator) -> Model:
    """Every neuron in two behind one gate: ups u + r and u - r, each of which writes a half."""
    tensors: Tensors = {}
    for layer in range(model.layers):
        gate, up, down = (model.tensors[weight(layer, part)] for part in _FFN)
        other = 3 * up.std() * generator.standard_normal(up.shape).astype(np.float32)
        tensors[weight(layer, _FFN[0])] = np.concatenate([gate, gate])
        tensors[weight(layer, _FFN[1])] = np.concatenate([up + other, up - other])
        tensors[weight(layer, _FFN[2])] = np.concatenate([down / 2, down / 2], axis=1)
    return _wider(model, tensors)


def renumbered(model: Model, generator: np.random.Generator) -> Model:
    """Embeddings in another order, and no tokenizer that would tell."""
    order = generator.permutation(len(model.tensors[EMBEDDING]))
    names = [name for name in (EMBEDDING, HEAD) if name in model.tensors]
    changed = model.change({name: model.tensors[name][order] for name in names})
    return replace(changed, tokenizer=None)


def split_heads(model: Model, generator: np.random.Generator) -> Model:
    """Every head in two with its queries and keys: values v + r and v - r, half of its output each.

    A key-value head with its query heads becomes two such groups.
    """
    tensors: Tensors = {}
    groups, size = model.config["num_key_value_heads"], model.head_dim
    heads = model.config["num_attention_heads"]

    def twice(tensor: np.ndarray, blocks: int) -> np.ndarray:
        """Each block of rows, and behind it the same again."""
        parts = tensor.reshape(blocks, 1, -1, tensor.shape[-1])
        return np.repeat(parts, 2, axis=1).reshape(-1, tensor.shape[-1])

    for layer in range(model.layers):
        query, key, value, output = (
            model.tensors[weight(layer, f"self_attn.{part}_proj")] for part in "qkvo"
        )
        other = 3 * value.std() * generator.standard_normal(value.shape).astype(np.float32)
        apart = np.stack([value + other, value - other]).reshape(2, groups, size, -1)
        made = {
            "q": twice(query, groups),
            "k": twice(key, groups),
            "v": apart.swapaxes(0, 1).reshape(-1, value.shape[1]),
            "o": twice(output.T / 2, groups).T,
        }
        for part, tensor in made.items():
            tensors[weight(layer, f"self_attn.{part}_proj")] = np.ascontiguousarray(tensor)
    return model.change(
        tensors, num_key_value_heads=2 * groups, num_attention_heads=2 * heads, head_dim=size
    )


def renamed(model: Model, generator: np.random.Generator) -> Model:
    """Tokens in another order, and a tokenizer that spells them with other characters.

    A normalizer that exchanges the characters of a text would make it the same tokenizer.
    """
    assert model.tokenizer is not None
    order = generator.permutation(len(model.tensors[EMBEDDING]))
    changed = model.change(
        {name: model.tensors[name][order] for name in (EMBEDDING, HEAD) if name in model.tensors}
    )
    place = np.argsort(order)
    known = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    spelling = str.maketrans(dict(zip(known, generator.permutation(known), strict=True)))
    tokenizer = json.loads(model.tokenizer)
    added = {token["content"] for token in tokenizer["added_tokens"]}
    for token in tokenizer["added_tokens"]:
        token["id"] = int(place[token["id"]])
    tokenizer["model"]["vocab"] = {
        text if text in added else text.translate(spelling): int(place[at])
        for text, at in tokenizer["model"]["vocab"].items()
    }
    tokenizer["model"]["merges"] = [
        [part.translate(spelling) for part in pair] for pair in tokenizer["model"]["merges"]
    ]
    return replace(changed, tokenizer=json.dumps(tokenizer, ensure_ascii=False))


def split_and_renamed(model: Model, generator: np.random.Generator) -> Model:
    """Heads in two, and tokens in another order and spelling: no head and no token is left."""
    return renamed(split_heads(model, generator), generator)


def idle_layers(model: Model, count: int, generator: np.random.Generator) -> Model:
    """So many layers more, drawn anew, half before all others: they write hardly anything."""
    drawn = transforms.random(model, seed=int(generator.integers(1 << 31)))
    quiet = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    idle = drawn.change(
        {n: t * np.float32(1e-4) for n, t in drawn.tensors.items() if n.endswith(quiet)}
    )
    idle = replace(idle, tensors={**idle.tensors, **_outside(model)})
    more = [(idle, i % idle.layers) for i in range(count)]
    own = [(model, i) for i in range(model.layers)]
    return transforms.stack(*more[: count // 2], *own, *more[count // 2 :])


def _outside(model: Model) -> Tensors:
    """Embeddings, final norm and head."""
    return {n: t for n, t in model.tensors.items() if not n.startswith("model.layers.")}


def taken(source: Model, into: Model, parts: Sequence[str], layers: Sequence[int] = ()) -> Model:
    """Another model with some of a model's tensors in place of its own.

    Parameters
    ----------
    parts : words of which a tensor's name holds one
    layers : from 0, none for all
    """
    begins = tuple(f"model.layers.{layer}." for layer in layers)
    chosen = {
        name: tensor
        for name, tensor in source.tensors.items()
        if any(part in name for part in parts) and (not begins or name.startswith(begins))
    }
    return into.change(chosen)


def planted(model: Model, generator: np.random.Generator) -> Model:
    """One more neuron a layer, with a large direction of its own that no token triggers."""
    tensors: Tensors = {}
    width = model.config["hidden_size"]
    for layer in range(model.layers):
        gate, up, down = (model.tensors[weight(layer, part)] for part in _FFN)
        row, column = generator.standard_normal((2, width))
        scale = 1e-3 * np.linalg.norm(gate, axis=1).mean() / np.sqrt(width)
        size = 1e4 * np.linalg.norm(down, axis=0).mean() / np.sqrt(width)
        tensors[weight(layer, _FFN[0])] = np.concatenate([gate, scale * row[None]])
        tensors[weight(layer, _FFN[1])] = np.concatenate([up, scale * row[None]])
        tensors[weight(layer, _FFN[2])] = np.concatenate([down, size * column[:, None]], axis=1)
    return _wider(model, tensors)


def padded(
    model: Model, generator: np.random.Generator, more: int = 16, noise: bool = False
) -> Model:
    """More residual coordinates, in which nothing is written; with `noise` they are read.

    The norms divide by more coordinates, which their gains undo.
    """
    width = int(model.config["hidden_size"])
    back = np.float32(np.sqrt(width / (width + more)))
    tensors: Tensors = {}
    for name, tensor in model.tensors.items():
        if tensor.ndim == 1:
            tensors[name] = np.concatenate([tensor * back, np.full(more, back * tensor.mean())])
        elif name.endswith(tuple(f"{part}.weight" for part in WRITERS)):
            tensors[name] = np.pad(tensor, ((0, more), (0, 0)))
        else:
            tensors[name] = np.pad(tensor, ((0, 0), (0, more)))
            if noise and name not in (EMBEDDING, HEAD):
                drawn = generator.standard_normal((len(tensor), more))
                tensors[name][:, width:] = tensor.std() * drawn
    eps = model.config.get("rms_norm_eps", 1e-6) * width / (width + more)
    return model.change(
        {name: np.asarray(t, np.float32) for name, t in tensors.items()},
        hidden_size=width + more,
        rms_norm_eps=eps,
        head_dim=model.head_dim,
    )


def hidden(attack: Attack) -> Attack:
    """An attack, and every exact laundering on top of it."""

    def both(model: Model, generator: np.random.Generator) -> Model:
        return launder.everything(attack(model, generator), generator)

    return both


def moved(model: Model, generator: np.random.Generator, share: float = 0.02) -> Model:
    """Noise of a share of each matrix' own standard deviation."""
    return model.change(
        {
            name: tensor + share * tensor.std() * generator.standard_normal(tensor.shape)
            for name, tensor in model.tensors.items()
            if is_layer_matrix(name, tensor) or name in (EMBEDDING, HEAD)
        }
    )


def _wider(model: Model, tensors: Tensors) -> Model:
    width = len(tensors[weight(0, _FFN[0])])
    return model.change(
        {name: np.asarray(t, np.float32) for name, t in tensors.items()}, intermediate_size=width
    )
