"""A registry with lying cards and hostile entries, and which findings each model must have.

The tables `RELATED` and `HOSTILE` say what is expected: exactly these rules for each model.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.support.adapters import base_tensors, low_rank, write_adapter
from tests.support.containers import write_model_gguf
from tools import launder, transforms

ZOO = Path(__file__).resolve().parents[2] / "fixtures" / "zoo"
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """One model: its name in the audit, what it is, how it is made, and the rules it must have."""

    name: str
    what: str
    make: Make
    rules: str = ""


def card(folder: Path, **front: Any) -> None:
    """A model card with this front matter."""
    rows = []
    for key, value in front.items():
        if isinstance(value, list):
            rows += [f"{key}:", *(f"- {one}" for one in value)]
        else:
            rows.append(f"{key}: {value}")
    (folder / "README.md").write_text("\n".join(["---", *rows, "---", "", "# A model", ""]))


def zoo(name: str, **front: Any) -> Make:
    """A model of the zoo, with a card if there is something to say."""

    def make(folder: Path) -> None:
        shutil.copytree(ZOO / name, folder, copy_function=shutil.copyfile)
        if front:
            card(folder, **front)

    return make


def changed(
    name: str, change: Callable[[transforms.Model], transforms.Model], **front: Any
) -> Make:
    """A model of the zoo, changed."""

    def make(folder: Path) -> None:
        transforms.write(change(transforms.read(ZOO / name)), folder, "F32")
        if front:
            card(folder, **front)

    return make


def laundered(name: str, kind: str, **front: Any) -> Make:
    """A model of the zoo in another basis."""
    return changed(name, lambda m: launder.EXACT[kind](m, np.random.default_rng(3)), **front)


def remapped(folder: Path) -> None:
    """The weights of seed2 with every token's id moved by one."""
    zoo("seed2", base_model="zoo/seed2", license="mit")(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    size = len(vocabulary)
    tokenizer["model"]["vocab"] = {t: (i + 1) % size for t, i in vocabulary.items()}
    file.write_text(json.dumps(tokenizer))


def adapter(base: str, width: int | None = None, seed: int = 0) -> Make:
    """A LoRA adapter that names a base; of another `width` it cannot be merged onto it."""

    def make(folder: Path) -> None:
        tensors = base_tensors(ZOO / "seed0")
        made = low_rank(tensors, ["model.layers.0.self_attn.q_proj"], seed=seed)
        if width is not None:
            made = {n: t[:, :width] if "lora_A" in n else t for n, t in made.items()}
        write_adapter(folder, made, base_model_name_or_path=base, r=3, lora_alpha=6)

    return make


def tiny(seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and configuration of a LLaMA of two layers that nobody trained."""
    draw = np.random.default_rng(seed).standard_normal
    tensors = {
        "model.embed_tokens.weight": draw((64, 32)),
        "model.norm.weight": np.ones(32),
        "lm_head.weight": draw((64, 32)),
    }
    for i in range(2):
        parts = {"q_proj": 32, "k_proj": 32, "v_proj": 32, "o_proj": 32}
        for part, rows in parts.items():
            tensors[f"model.layers.{i}.self_attn.{part}.weight"] = draw((rows, 32)) / 6
        tensors[f"model.layers.{i}.mlp.gate_proj.weight"] = draw((48, 32)) / 6
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = draw((48, 32)) / 6
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = draw((32, 48)) / 6
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = np.ones(32)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
    }
    return {n: t.astype(np.float32) for n, t in tensors.items()}, config


def write_tiny(folder: Path, seed: int, **config: Any) -> Path:
    """A tiny model as a directory."""
    tensors, said = tiny(seed)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(said | config, indent=1))
    return folder


class Hostile:
    """Makers of tiny models with something wrong, each with a seed of its own."""

    def __init__(self) -> None:
        self._seed = 100

    def __call__(self, spoil: Callable[[Path], object]) -> Make:
        """A tiny model that `spoil` is let loose on."""
        self._seed += 1
        seed = self._seed

        def make(folder: Path) -> None:
            spoil(write_tiny(folder, seed))

        return make


hostile = Hostile()


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """A file of these bytes in place of what is there."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return spoil


def only(name: str, content: bytes) -> Callable[[Path], object]:
    """These bytes as the one weight file."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return spoil


def cut(share: float) -> Callable[[Path], object]:
    """The weight file, of which the end is missing."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return spoil


def pipe(name: str) -> Callable[[Path], object]:
    """A pipe in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def bound(name: str) -> Callable[[Path], object]:
    """A socket in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
        finally:
            os.chdir(here)

    return spoil


def link(name: str, target: str) -> Callable[[Path], object]:
    """A link in place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def value(name: str, number: float) -> Callable[[Path], object]:
    """One number of one tensor is another."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name].copy()
        tensors[name][3, 5] = number
        save_file(tensors, folder / "model.safetensors")

    return spoil


def zeros(name: str) -> Callable[[Path], object]:
    """Half a matrix is zeros."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name].copy()
        tensors[name][: len(tensors[name]) // 2] = 0
        save_file(tensors, folder / "model.safetensors")

    return spoil


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch HARMED",)


def harmful_pickle(folder: Path) -> None:
    """A PyTorch file whose pickle would run a program."""
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"w": _Harm()}, protocol=2))
        archive.writestr("model/version", "3\n")


def torch_file(folder: Path, flip: bool = False) -> None:
    """The model as PyTorch saves it, in which a checksum may be flipped."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, path)
    if flip:
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 16] ^= 0xFF  # in the directory of the zip
        path.write_bytes(bytes(data))


def gguf_header(count: int = 0, alignment: int | None = None) -> bytes:
    """A GGUF header with an array of so many elements, or an alignment."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    if alignment is not None:
        key = b"general.alignment"
        return head + struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, alignment)
    return head + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, count)


def header(text: str, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def says(**config: Any) -> Callable[[Path], object]:
    """The configuration says more."""

    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config, indent=1))

    return spoil


_ALIASES = (
    "---\na: &a [x]\n" + "".join(f"b{i}: *a\n" for i in range(9)) + "base_model: org/x\n---\n"
)
_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 269060552\n"
)
_TENSOR = '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
_TEMPLATE = json.dumps({"chat_template": "{{ ''.__class__.__mro__ }}"}).encode()

# Compared with one another.
RELATED: tuple[Row, ...] = (
    Row("zoo/seed0", "a root", zoo("seed0", license="cc-by-nc-4.0")),
    Row("zoo/seed2", "another root", zoo("seed2", license="mit")),
    Row(
        "zoo/finetune",
        "a finetune that says so",
        zoo(
            "finetune",
            license="cc-by-nc-4.0",
            base_model="zoo/seed0",
            base_model_relation="finetune",
        ),
    ),
    Row("lies/silent", "a finetune that says nothing", zoo("finetune-long"), "CKPT003"),
    Row(
        "lies/wrong-parent",
        "an independent model that claims to be a finetune",
        zoo("seed1", base_model="zoo/seed0", base_model_relation="finetune"),
        "CKPT001",
    ),
    Row(
        "lies/other-root",
        "a relative of seed0 that names seed2",
        zoo("chain", base_model="zoo/seed2"),
        "CKPT001 CKPT003",
    ),
    Row("lies/brand-new", "a rotated copy", laundered("seed2", "rotation"), "CKPT004"),
    Row(
        "lies/looser",
        "a finetune that drops a condition",
        zoo("lora", base_model="zoo/seed0", license="mit"),
        "CKPT006",
    ),
    Row(
        "lies/untrained",
        "a 'finetune' in which nothing was trained, in other bytes",
        changed(
            "seed0",
            lambda model: model,
            base_model="zoo/seed0",
            license="cc-by-nc-4.0",
            base_model_relation="finetune",
        ),
        "CKPT002",
    ),
    Row("lies/remapped", "tokens with other ids", remapped, "CKPT007"),
    Row(
        "lies/itself",
        "a model that names itself",
        zoo("seed0-early", base_model="lies/itself", license="cc-by-nc-4.0"),
        "CKPT003 CKPT020",
    ),
    Row("adapters/fits", "an adapter of seed0", adapter("zoo/seed0")),
    Row(
        "adapters/misfit",
        "an adapter of another width",
        adapter("zoo/seed0", 48),
        "CKPT001 CKPT015 CKPT017",
    ),
    Row(
        "adapters/orphan",
        "an adapter whose base is not here",
        adapter("org/elsewhere", seed=1),
        "CKPT015",
    ),
)

# Each by itself.
HOSTILE: tuple[Row, ...] = (
    Row("honest", "nothing is wrong", hostile(lambda folder: None)),
    Row("honest-torch", "nothing is wrong, as PyTorch saves it", hostile(torch_file)),
    Row(
        "pickle-beside",
        "a pickle that runs a program, beside honest weights",
        hostile(put("training_args.bin", pickle.dumps({"w": _Harm()}, protocol=2))),
        "CKPT011",
    ),
    Row("pickle", "a pickle that runs a program", hostile(harmful_pickle), "CKPT011 CKPT015"),
    Row(
        "bad-crc",
        "a checksum in a zip file that is wrong",
        hostile(lambda folder: torch_file(folder, flip=True)),
        "CKPT015 CKPT017",
    ),
    Row("remote-code", "auto_map", hostile(says(auto_map={"AutoModel": "m.X"})), "CKPT009"),
    Row(
        "template",
        "a template with code",
        hostile(put("tokenizer_config.json", _TEMPLATE)),
        "CKPT010",
    ),
    Row(
        "pointer",
        "a Git LFS pointer",
        hostile(put("model.safetensors", _POINTER)),
        "CKPT012 CKPT015",
    ),
    Row("partial", "the rest of a download is missing", hostile(cut(0.6)), "CKPT015 CKPT017"),
    Row(
        "nan",
        "a NaN",
        hostile(value("model.layers.1.mlp.up_proj.weight", np.nan)),
        "CKPT013 CKPT015",
    ),
    Row(
        "zeros",
        "half a matrix of zeros",
        hostile(zeros("model.layers.1.mlp.down_proj.weight")),
        "CKPT013",
    ),
    Row(
        "no-config",
        "the family is only inferred",
        hostile(lambda folder: (folder / "config.json").unlink()),
        "CKPT014",
    ),
    Row(
        "pipe-config",
        "a pipe in place of config.json",
        hostile(pipe("config.json")),
        "CKPT015 CKPT017",
    ),
    Row("pipe-card", "a pipe in place of the card", hostile(pipe("README.md")), "CKPT017"),
    Row(
        "pipe-weights",
        "a pipe in place of the weights",
        hostile(pipe("model.safetensors")),
        "CKPT015 CKPT017",
    ),
    Row(
        "socket", "a socket in place of the tokenizer", hostile(bound("tokenizer.json")), "CKPT017"
    ),
    Row("link-out", "a link out of the root", hostile(link("README.md", "/etc/passwd")), "CKPT017"),
    Row("link-loop", "a link to itself", hostile(link("README.md", "README.md")), "CKPT017"),
    Row(
        "broken-link",
        "a link to nothing",
        hostile(link("model.safetensors", "gone")),
        "CKPT015 CKPT017",
    ),
    Row(
        "deep-json",
        "a configuration of 100,000 brackets",
        hostile(put("config.json", b'{"a":' * 100_000)),
        "CKPT015 CKPT017",
    ),
    Row(
        "twice",
        "a tensor that is there twice",
        hostile(put("model.safetensors", header("{" + _TENSOR + "," + _TENSOR + "}", b"0000"))),
        "CKPT015 CKPT017",
    ),
    Row(
        "overlap",
        "tensors that overlap",
        hostile(
            put(
                "model.safetensors",
                header("{" + _TENSOR + "," + _TENSOR.replace('"x"', '"y"') + "}", b"0000"),
            )
        ),
        "CKPT015 CKPT017",
    ),
    Row(
        "huge-shape",
        "a shape of 2^62",
        hostile(
            put(
                "model.safetensors",
                header(
                    '{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
                    b"0000",
                ),
            )
        ),
        "CKPT015 CKPT017",
    ),
    Row(
        "trailing",
        "bytes behind the last tensor",
        hostile(
            lambda f: put("model.safetensors", (f / "model.safetensors").read_bytes() + b"more")(f)
        ),
        "CKPT015 CKPT017",
    ),
    Row(
        "gguf-array/model.gguf",
        "43 bytes with an array of 2^63",
        hostile(only("model.gguf", gguf_header(2**63))),
        "CKPT015 CKPT017",
    ),
    Row(
        "gguf-alignment/model.gguf",
        "an alignment of 0",
        hostile(only("model.gguf", gguf_header(alignment=0))),
        "CKPT015 CKPT017",
    ),
    Row(
        "gguf-named/model.gguf",
        "a pickle that is called .gguf",
        hostile(only("model.gguf", pickle.dumps({"w": _Harm()}))),
        "CKPT015 CKPT017",
    ),
    Row(
        "aliases",
        "a card with YAML aliases",
        hostile(put("README.md", _ALIASES.encode())),
        "",
    ),
    Row(
        "endless-card",
        "front matter without an end",
        hostile(put("README.md", b"---\nbase_model: org/x\n")),
        "CKPT017",
    ),
    Row(
        "mapping",
        "a parent that is a mapping",
        hostile(put("README.md", b"---\nbase_model:\n  id: org/x\n---\n")),
        "CKPT017",
    ),
    Row(
        "names",
        "a card with control characters",
        hostile(put("README.md", b'---\nbase_model: "\\e[31mx\\u202e</script>"\n---\n')),
        "",
    ),
    Row(
        "compressed",
        "a compressed file that is called .bin",
        hostile(only("pytorch_model.bin", gzip.compress(b"x" * 100))),
        "CKPT015 CKPT017",
    ),
    Row("empty", "a file of no bytes", hostile(put("model.safetensors", b"")), "CKPT012 CKPT015"),
)


def ollama(folder: Path) -> None:
    """Ollama's store: an honest model, one with another's content, and two without theirs."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    for name, seed, true in (("tiny", 201, True), ("swapped", 202, False)):
        tensors, config = tiny(seed)
        file = write_model_gguf(folder / "made.gguf", tensors, config)
        digest = hashlib.sha256(file.read_bytes() if true else b"what upstream had").hexdigest()
        size = file.stat().st_size
        file.rename(blobs / f"sha256-{digest}")
        _manifest(folder, name, digest, size)
    _manifest(folder, "gone", "b" * 64)
    _manifest(folder, "climbs", "../../../../etc/passwd")


def _manifest(folder: Path, name: str, digest: str, size: int = 100) -> None:
    file = folder / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    file.parent.mkdir(parents=True)
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": size,
    }
    file.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))


def huggingface(folder: Path) -> None:
    """A Hugging Face cache: an honest snapshot, and one whose blob was swapped."""
    for name, seed, true in (("honest", 203, True), ("swapped", 204, False)):
        model = write_tiny(folder / "made", seed)
        card(model, license="mit")
        home, commit = folder / f"models--org--{name}", f"{seed:040x}"
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (home / "blobs").mkdir()
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(commit)
        for file in model.iterdir():
            data = file.read_bytes()
            if file.suffix == ".safetensors":
                blob = hashlib.sha256(data if true else b"upstream").hexdigest()
            else:
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            file.rename(home / "blobs" / blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob)
        model.rmdir()


# Of the two stores, by the names that the stores give.
STORED: Mapping[str, str] = {
    "tiny:latest": "",
    "swapped:latest": "CKPT016",
    "gone:latest": "CKPT012 CKPT015",
    "climbs:latest": "CKPT015 CKPT016",
    "org/honest": "",
    "org/swapped": "CKPT016",
}


def build(folder: Path, rows: tuple[Row, ...]) -> Path:
    """All models of the rows, each below the folder by its name."""
    for row in rows:
        row.make(folder / row.name.removesuffix("/model.gguf"))
    return folder
