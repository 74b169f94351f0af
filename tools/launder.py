"""Launder a LLaMA-like checkpoint: other weights, the same function; or damage it a little.

    python -m tools.launder SOURCE KIND DIR [--seed N]

KIND is one of `EXACT`, after which the logits are the same (all but `dtype` write float32), or
`noise:SHARE` or `finetune:STEPS`, after which they are not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tools.transforms import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    READERS,
    WRITERS,
    Model,
    Tensors,
    read,
    weight,
    write,
)

Laundering = Callable[[Model, np.random.Generator], Model]


# The residual stream


def signed_permutation(model: Model, generator: np.random.Generator) -> Model:
    """Residual coordinates in another order, some with the other sign; a tied head stays tied."""
    width = model.config["hidden_size"]
    order = generator.permutation(width)
    sign = generator.choice([-1.0, 1.0], width)
    tensors = {}
    for name, tensor in model.tensors.items():
        if tensor.ndim == 1:  # a gain multiplies its coordinate whatever the sign
            tensors[name] = tensor[order]
        elif _is(name, WRITERS):
            tensors[name] = tensor[order] * sign[:, None]
        else:
            tensors[name] = tensor[:, order] * sign
    return _single(model, tensors)


def rotation(model: Model, generator: np.random.Generator) -> Model:
    """The residual stream in a random orthonormal basis; gains are folded, the head untied."""
    width = model.config["hidden_size"]
    q = np.linalg.qr(generator.standard_normal((width, width)))[0]
    tensors = _double(model)
    gain = tensors[FINAL_NORM]
    head = tensors[EMBEDDING if model.tied else HEAD] * gain
    for layer in range(model.layers):
        for reader, norm in READERS.items():
            tensors[weight(layer, reader)] *= tensors[weight(layer, norm)]
            tensors[weight(layer, reader)] @= q
        for writer in WRITERS:
            tensors[weight(layer, writer)] = q.T @ tensors[weight(layer, writer)]
    tensors[EMBEDDING] @= q
    tensors[HEAD] = head @ q
    tensors |= {name: np.ones(t.shape) for name, t in tensors.items() if t.ndim == 1}
    return _single(model, tensors, tie_word_embeddings=False)


def gain_swap(model: Model, generator: np.random.Generator) -> Model:
    """Other gains in every norm, with their inverse in the maps behind it.

    The final norm keeps its gains where the head is tied to the embedding.
    """
    tensors = _double(model)
    width = model.config["hidden_size"]
    for layer in range(model.layers):
        factors = {
            norm: generator.uniform(0.25, 4, width) for norm in sorted(set(READERS.values()))
        }
        for norm, factor in factors.items():
            tensors[weight(layer, norm)] *= factor
        for reader, norm in READERS.items():
            tensors[weight(layer, reader)] /= factors[norm]
    if not model.tied:
        factor = generator.uniform(0.25, 4, width)
        tensors[FINAL_NORM] *= factor
        tensors[HEAD] /= factor
    return _single(model, tensors)


def residual_scale(model: Model, generator: np.random.Generator) -> Model:
    """All that is written to the residual stream times one factor; norms take it out again."""
    factor = generator.uniform(2, 8)
    tensors = _double(model)
    if model.tied:
        tensors[FINAL_NORM] /= factor
    for name in tensors:
        if name == EMBEDDING or _is(name, WRITERS):
            tensors[name] *= factor
    return _single(model, tensors, rms_norm_eps=model.config["rms_norm_eps"] * factor**2)


# Inside the branches


def neuron_permutation(model: Model, generator: np.random.Generator) -> Model:
    """The neurons of each FFN in another order."""
    tensors = _double(model)
    for layer in range(model.layers):
        order = generator.permutation(model.config["intermediate_size"])
        for part in ("gate", "up"):
            tensors[weight(layer, f"mlp.{part}_proj")] = _of(tensors, layer, part)[order]
        tensors[weight(layer, "mlp.down_proj")] = _of(tensors, layer, "down")[:, order]
    return _single(model, tensors)


def updown_scaling(model: Model, generator: np.random.Generator) -> Model:
    """Each row of up times a factor of either sign, its column of down divided by it."""
    tensors = _double(model)
    for layer in range(model.layers):
        size = model.config["intermediate_size"]
        factor = generator.uniform(0.25, 4, size) * generator.choice([-1, 1], size)
        tensors[weight(layer, "mlp.up_proj")] *= factor[:, None]
        tensors[weight(layer, "mlp.down_proj")] /= factor
    return _single(model, tensors)


def head_permutation(model: Model, generator: np.random.Generator) -> Model:
    """Key-value heads in another order, and the query heads of each."""
    tensors = _double(model)
    groups = model.config["num_key_value_heads"]
    each = model.config["num_attention_heads"] // groups
    for layer in range(model.layers):
        kv = generator.permutation(groups)
        queries = np.concatenate([g * each + generator.permutation(each) for g in kv])
        for part, order in (("q", queries), ("k", kv), ("v", kv)):
            rows = _rows(order, model.head_dim)
            tensors[weight(layer, f"self_attn.{part}_proj")] = _of(tensors, layer, part)[rows]
        columns = _rows(queries, model.head_dim)
        tensors[weight(layer, "self_attn.o_proj")] = _of(tensors, layer, "o")[:, columns]
    return _single(model, tensors)


def value_basis(model: Model, generator: np.random.Generator) -> Model:
    """The values of each key-value head in another basis, with condition number 4 at most."""
    tensors = _double(model)
    groups, size = model.config["num_key_value_heads"], model.head_dim
    each = model.config["num_attention_heads"] // groups
    for layer in range(model.layers):
        value, output = _of(tensors, layer, "v"), _of(tensors, layer, "o")
        for group in range(groups):
            left, right = (
                np.linalg.qr(generator.standard_normal((size, size)))[0] for _ in range(2)
            )
            stretch = generator.uniform(0.5, 2, size)
            rows = _rows(np.array([group]), size)
            value[rows] = (left * stretch) @ right @ value[rows]
            for query in range(group * each, (group + 1) * each):
                columns = _rows(np.array([query]), size)
                output[:, columns] = output[:, columns] @ right.T @ (left / stretch).T
    return _single(model, tensors)


# Files


def renaming(model: Model, _: np.random.Generator | None = None) -> Model:
    """The same weights under the names and the configuration of Phi-3, which fuses maps."""
    fused = {
        "self_attn.qkv_proj": [f"self_attn.{part}_proj" for part in "qkv"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    }
    tensors = dict(model.tensors)
    for layer in range(model.layers):
        for name, parts in fused.items():
            rows = [tensors.pop(weight(layer, part)) for part in parts]
            tensors[weight(layer, name)] = np.concatenate(rows)
    longest = model.config["max_position_embeddings"]
    config = {
        **model.config,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "original_max_position_embeddings": longest,
        "pad_token_id": model.config["eos_token_id"],
        "sliding_window": None,
    }
    return Model(config, tensors, model.tokenizer)


def everything(model: Model, generator: np.random.Generator) -> Model:
    """All of them; the rotation takes the place of the signed permutation."""
    for step in (
        rotation,
        gain_swap,
        neuron_permutation,
        updown_scaling,
        head_permutation,
        value_basis,
        residual_scale,
        renaming,
    ):
        model = step(model, generator)
    return model


def _unchanged(model: Model, _: np.random.Generator) -> Model:
    return model


EXACT: dict[str, Laundering] = {
    "signed-permutation": signed_permutation,
    "rotation": rotation,
    "gain-swap": gain_swap,
    "neuron-permutation": neuron_permutation,
    "updown-scaling": updown_scaling,
    "head-permutation": head_permutation,
    "value-basis": value_basis,
    "residual-scale": residual_scale,
    "dtype": _unchanged,
    "renaming": renaming,
    "all": everything,
}


def launder(source: Path, kind: str, folder: Path, seed: int = 0, dtype: str = "F32") -> Path:
    """Write the laundered checkpoint.

    Parameters
    ----------
    source : folder of a LLaMA-like checkpoint
    kind : a name in `EXACT`
    dtype : `F16` rounds weights that are not BF16, and is exact for them but for the tiniest

    Raises
    ------
    ValueError
        for a model that is not LLaMA-like or has biases, which the launderings would have to follow
    """
    model = read(source)
    if model.config["model_type"] != "llama" or any(n.endswith(".bias") for n in model.tensors):
        raise ValueError(f"{source}: only LLaMA-like models without biases can be laundered")
    return write(EXACT[kind](model, np.random.default_rng(seed)), folder, dtype)


# Damage


def noise(model: Model, share: float, seed: int = 0) -> Model:
    """Gaussian noise on every matrix, embeddings included.

    Parameters
    ----------
    share : standard deviation of the noise, as a share of each matrix' own
    """
    generator = np.random.default_rng(seed)
    matrices = {name: t for name, t in model.tensors.items() if t.ndim == 2}
    return _single(
        model,
        {n: t + generator.standard_normal(t.shape) * t.std() * share for n, t in matrices.items()},
    )


def finetune(
    source: Path, folder: Path, steps: int = 200, peak: float = 3e-4, seed: int = 0
) -> Path:
    """Train a model that has a `tokenizer.json` on source code it has not seen, and write BF16."""
    from tokenizers import Tokenizer

    from tools import training

    training.quiet()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    text = training.split(tokenizer, training.sources("concurrent", "zoneinfo", "json", "html"))
    model = training.load(source)
    training.train(model, text, steps, peak, seed=seed, measure=1)
    before = read(source)
    tensors = {n: p.detach().numpy() for n, p in model.state_dict().items() if n in before.tensors}
    return write(_single(before, tensors), folder)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("kind", help=f"{', '.join(EXACT)}, noise:SHARE or finetune:STEPS")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source, folder, seed = arguments.source, arguments.folder, arguments.seed
    kind, _, amount = arguments.kind.partition(":")
    if kind == "noise":
        write(noise(read(source), float(amount), seed), folder, "F32")
    elif kind == "finetune":
        finetune(source, folder, int(amount), seed=seed)
    elif kind in EXACT:
        launder(source, kind, folder, seed)
    else:
        parser.error(f"no laundering is called {kind}")
    print(folder)


def _single(model: Model, tensors: Tensors, **config: object) -> Model:
    return model.change({n: np.asarray(t, np.float32) for n, t in tensors.items()}, **config)


def _double(model: Model) -> Tensors:
    return {name: tensor.astype(np.float64) for name, tensor in model.tensors.items()}


def _of(tensors: Tensors, layer: int, part: str) -> np.ndarray:
    block = "self_attn" if part in "qkvo" else "mlp"
    return tensors[weight(layer, f"{block}.{part}_proj")]


def _rows(heads: np.ndarray, size: int) -> np.ndarray:
    return (heads[:, None] * size + np.arange(size)).ravel()


def _is(name: str, parts: tuple[str, ...]) -> bool:
    return name.endswith(tuple(f"{part}.weight" for part in parts))


if __name__ == "__main__":
    main()
