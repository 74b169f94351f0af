"""PyTorch checkpoints: what torch wrote is read as torch reads it; what attacks is only named."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, TensorError, exit_code
from ckptforensics.findings import sign
from ckptforensics.sources import Source
from ckptforensics.tensors import FileReader, open_files
from ckptforensics.tensors.containers import torchpickle, torchzip
from ckptforensics.tensors.containers.torchzip import read_torch
from tests.support.models import save, tiny_gpt2, tiny_llama

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
OTHERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "C128": torch.complex128,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "w.bin"


def store_of(path: Path) -> FileReader:
    return open_files(Source(path, "torch", (path,), None))


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(
    pickled: bytes | None,
    entries: Iterable[tuple[str, bytes]] = (("w/data/0", bytes(24)), ("w/byteorder", b"little")),
    *,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip file laid out as torch's, around any pickle and any entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, content in ([] if pickled is None else [("w/data.pkl", pickled)]) + list(entries):
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # as it is: the constructor would tidy it up
            info.compress_type = method
            twice = name in out.namelist()
            with pytest.warns(UserWarning, match="Duplicate") if twice else nullcontext():
                out.writestr(info, content)
    return buffer.getvalue()


def tensor(key: bytes = b"0", **changes: bytes) -> bytes:
    """Opcodes that make a (2, 3) float32 tensor of storage `key`, as torch.save writes them."""
    part = {
        "type": b"ctorch\nFloatStorage\n",
        "count": b"K\x06",
        "offset": b"K\x00",
        "shape": b"K\x02K\x03\x86",
        "stride": b"K\x03K\x01\x86",
        "grad": b"\x89",
        "hooks": b"ccollections\nOrderedDict\n)R",
        **changes,
    }
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage") + part["type"] + text(key.decode()) + text("cpu") + part["count"] + b"tQ"
        + part["offset"] + part["shape"] + part["stride"] + part["grad"] + part["hooks"] + b"tR"
    )  # fmt: skip


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def state(*items: tuple[str, bytes], protocol: int = 2) -> bytes:
    """A pickled dict of these opcodes."""
    body = b"".join(text(name) + opcodes for name, opcodes in items)
    return b"\x80" + bytes([protocol]) + b"}(" + body + b"u."


def refuse(file: Path, data: bytes, *words: str, kind: type[CkptError] = FormatError) -> CkptError:
    file.write_bytes(data)
    with pytest.raises(kind) as caught:
        read_torch(file)
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message
    assert caught.value.path == file
    return caught.value


# What torch writes.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_element_type(file, protocol):
    source = torch.linspace(-3, 3, 12).reshape(3, 4)
    tensors = {name: source.to(dtype) for name, dtype in (FLOATS | OTHERS).items()}
    torch.save(tensors, file, pickle_protocol=protocol)
    container = read_torch(file)
    data = file.read_bytes()
    assert set(container.tensors) == set(tensors)
    for name, info in container.tensors.items():
        assert (info.dtype, info.shape) == (name, (3, 4))
        stored = tensors[name].view(torch.uint8).numpy().tobytes()
        assert data[info.offset : info.offset + info.nbytes] == stored
    store = store_of(file)
    for name in FLOATS:
        expected = torch.load(file)[name].float() if protocol == 2 else tensors[name].float()
        assert np.array_equal(store.read(name), expected.numpy())
    for name in OTHERS:
        with pytest.raises(TensorError, match="cannot be decoded"):
            store.read(name)


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_that_torch_itself_no_longer_reads_safely(file, protocol):
    refuse(file, saved({"a": torch.ones(2)}, pickle_protocol=protocol), "protocol 0 or 1")


def test_a_module_state_dict_with_its_metadata_and_parameters(file):
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5)).half()
    torch.save(module.state_dict(), file)
    assert module.state_dict()._metadata
    store = store_of(file)
    assert store.metadata == {}
    for name, value in module.state_dict().items():
        assert np.array_equal(store.read(name), value.float().numpy())

    labelled = torch.nn.Parameter(torch.randn(4))
    labelled.tensor_model_parallel = True
    parameters = {**dict(module.named_parameters()), "labelled": labelled}
    torch.save(OrderedDict(parameters), file)
    store = store_of(file)
    assert set(store) == set(parameters)
    for name, value in parameters.items():
        assert np.array_equal(store.read(name), value.detach().float().numpy())


def test_tied_tensors_and_views_with_offsets(file):
    whole = torch.randn(6, 4)
    tensors = {
        "whole": whole,
        "tied": whole,
        "rows": whole[2:5],
        "row": whole[3],
        "element": whole[1, 2],
        "one": whole[1:2, 1:3],  # the axis of length 1 has no stride to speak of
        "none": whole[2:2],
        "empty": torch.zeros(0, 3)[:, 1:],
        "scalar": torch.tensor(2.5),
    }
    torch.save(tensors, file)
    store = store_of(file)
    for name, value in tensors.items():
        assert store.info(name).shape == tuple(value.shape)
        assert np.array_equal(store.read(name), value.numpy())
    assert store.info("whole").offset == store.info("tied").offset
    assert np.array_equal(store.read_rows("rows", 1, 3), whole[3:5].numpy())


def test_views_out_of_order_are_listed_and_refused_when_read(file):
    whole = torch.randn(6, 4)
    views = {
        "transposed": whole.t(),
        "columns": whole[:, 1:3],
        "expanded": whole[:1].expand(6, 4),
        "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
        "negative": torch.randn(2, dtype=torch.complex64).conj().imag,
    }
    torch.save({**views, "whole": whole}, file)
    store = store_of(file)
    for name, value in views.items():
        assert store.info(name).shape == tuple(value.shape)
        with pytest.raises(TensorError) as caught:
            store.read_rows(name, 0, 1)
        assert caught.value.tensor == name
    with pytest.raises(TensorError, match=r"shape \(4, 6\) and stride \(1, 4\).*contiguous"):
        store.read("transposed")
    assert np.array_equal(store.read("whole"), whole.numpy())


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_state_dict_one_level_down(file, key):
    inner = {"a": torch.ones(2), "note": "text", "version": 3}
    torch.save({key: inner, "step": torch.tensor(7), "epoch": 1.5, "done": True, "b": None}, file)
    store = store_of(file)
    assert set(store) == {"a"}
    assert store.metadata == {"state_dict_key": key}


def test_which_of_two_state_dicts_is_not_guessed(file):
    inner = {"a": torch.ones(2)}
    refuse(file, saved({"model": inner, "module": inner}), "'model', 'module'",
           kind=NothingAnalysable)  # fmt: skip


def test_what_is_not_a_tensor_is_left_out(file):
    leaves = {
        "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "list": [1, [2, {3: (4,)}]],
        "none": None, "big": 1 << 90, "negative": -5, "float": -0.5, "text": "ж☃",
        "long": "x" * 300, "tuple": tuple(range(1500)), "many": list(range(3000)),
        "nested": {"a": torch.ones(1)},
        "dict": {i: str(i) for i in range(2500)}, 5: torch.ones(1),
    }  # fmt: skip
    for protocol in (2, 4):
        torch.save({**leaves, "a": torch.ones(2)}, file, pickle_protocol=protocol)
        assert set(read_torch(file).tensors) == {"a"}


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"model": {"a": 1}}, [torch.ones(2)], torch.ones(2),
     {"state_dict": {"model": {"a": torch.ones(1)}}}],
)  # fmt: skip
def test_no_state_dict(file, value):
    error = refuse(file, saved(value), "state dict", kind=NothingAnalysable)
    assert exit_code(error) == 3


@pytest.mark.parametrize(
    "keys", [("model_state_dict",), ("state", "model"), ("model", "language_model")]
)
def test_state_dicts_as_programs_wrap_them(file, keys):
    value = {"a": torch.ones(2)}
    for key in reversed(keys):
        value = {key: value, "epoch": 3}
    torch.save(value, file)
    assert set(read_torch(file).tensors) == {"a"}


def test_files_without_checksums(file):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert np.array_equal(store_of(file).read("a"), [1, 1])


def test_the_header_digest_is_that_of_the_pickle_and_the_directory(file):
    data = saved({"a": torch.ones(2)})
    file.write_bytes(data)
    with zipfile.ZipFile(file) as opened:
        pickled = opened.read("archive/data.pkl")
        begin = opened.start_dir
    directory = data[begin : data.index(b"PK\x06\x06")]
    assert read_torch(file).header_sha256 == hashlib.sha256(pickled + directory).hexdigest()
    file.write_bytes(saved({"b": torch.ones(2)}))
    assert read_torch(file).header_sha256 != hashlib.sha256(pickled + directory).hexdigest()


def test_needs_neither_torch_nor_numpy_nor_pickle(file):
    torch.save({"a": torch.ones(2)}, file)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = sys.modules['pickle'] = None\n"
        "from pathlib import Path\n"
        "from ckptforensics.tensors.containers.torchzip import read_torch\n"
        f"print(list(read_torch(Path({str(file)!r})).tensors))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("['a']\n", "")


# The same model in another container.


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_signature_is_that_of_the_same_model_in_safetensors(tmp_path, make, dtype):
    model = make().to(dtype)
    expected = sign(save(model, tmp_path / "safetensors"))
    state_dict = model.state_dict()
    config = (tmp_path / "safetensors" / "config.json").read_text()
    for name in ("single", "sharded", "unindexed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        torch.save({}, tmp_path / name / "training_args.bin")
    torch.save(state_dict, tmp_path / "single" / "pytorch_model.bin")
    names = sorted(state_dict)
    weight_map = {n: f"pytorch_model-0000{1 + i % 3}-of-00003.bin" for i, n in enumerate(names)}
    for shard in sorted(set(weight_map.values())):
        part = {n: state_dict[n] for n in names if weight_map[n] == shard}
        for folder in ("sharded", "unindexed"):
            torch.save(part, tmp_path / folder / shard)
    index = tmp_path / "sharded" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    single = tmp_path / "single"
    for path in (single, single / "pytorch_model.bin", index.parent, index, tmp_path / "unindexed"):
        signature = sign(path)
        assert signature.document.fingerprint == expected.document.fingerprint
        for array in ("u", "v", "sigma", "residual"):
            assert np.array_equal(getattr(signature, array), getattr(expected, array)), array


# Formats that are not read.


def test_the_legacy_formats(file, tmp_path):
    legacy = saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    error = refuse(file, legacy, "legacy", "safetensors", kind=NothingAnalysable)
    assert exit_code(error) == 3
    with tarfile.open(file, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name))
    refuse(file, file.read_bytes(), "legacy", kind=NothingAnalysable)
    refuse(file, pickle.dumps({"a": 1}), "bare pickle", kind=NothingAnalysable)


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"x", "not a zip"), (b"PK\x03\x04", "does not end"), (bytes(9000), "not a")],
)
def test_no_zip_file(file, data, word):
    refuse(file, data, word)


def test_what_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FormatError):
            read_torch(path)


def test_every_truncation(file):
    data = saved({"a": torch.ones(2)})
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(FormatError):
            read_torch(file)
    refuse(file, data + b"\0", "does not end")
    refuse(file, b"x" + data, "not a zip")


@pytest.mark.parametrize("order", [b"little", b"big", b"", b"LITTLE", b"little" * 9])
def test_the_byte_order(file, order):
    data = archive(state(("a", tensor())), [("w/data/0", bytes(24)), ("w/byteorder", order)])
    if order == b"little":
        file.write_bytes(data)
        assert store_of(file).read("a").shape == (2, 3)
    else:
        refuse(file, data, "byteorder" if len(order) > 16 else "little-endian")
    # Before torch 2.1 there was no such entry.
    file.write_bytes(archive(state(("a", tensor())), [("w/data/0", bytes(24))]))
    read_torch(file)


# Malicious pickles. Each payload is first shown to work, by pickle itself.


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


class WithState:
    """Pickles as NEWOBJ and BUILD."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def attacks(sentinel: Path) -> dict[str, tuple[Any, str]]:
    """Values whose unpickling creates `sentinel`, and the global that must be named."""
    command = f"touch '{sentinel}'"
    code = f"open({str(sentinel)!r}, 'w').close()"
    system = f"{os.name}.system"
    return {
        "system": (Call(os.system, command), system),
        "popen": (Call(subprocess.check_call, ["touch", str(sentinel)]), ".check_call"),
        "eval": (Call(eval, f"exec({code!r})"), "eval"),
        "exec": (Call(exec, code), "exec"),
        "open": (Call(open, str(sentinel), "w"), "io.open"),
        "getattr": (Call(getattr, Call(builtins.__import__, "os"), "system"), "getattr"),
        "in a tuple": ((1, (2, [Call(os.system, command)])), system),
        "in a list of a dict": ({"x": [Call(os.system, command)]}, system),
        "as a key": ({Call(os.system, command): 1}, system),
        "torch": (Call(torch.storage._load_from_bytes, b"x"), "torch.storage._load_from_bytes"),
        "load": (Call(torch.load, str(sentinel)), "torch.serialization.load"),
        "numpy": (np.zeros(2), "numpy"),
        "defaultdict": (defaultdict(list), "collections.defaultdict"),
        "counter": (Counter("a"), "collections.Counter"),
        "bytes": (b"x", "_codecs.encode"),
        "object": (WithState(a=1), "WithState"),
        "namespace": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        "sparse": (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        "generator": (torch.device("cpu"), "torch.device"),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_an_attack_calls_is_named_and_not_called(file, tmp_path, name, protocol):
    sentinel = tmp_path / "executed"
    value, named = attacks(sentinel)[name]
    if protocol == 4 and name == "bytes":
        named = "SHORT_BINBYTES"
    for place in ({"a": torch.ones(2), "b": value}, {"model": {"b": value}}, value):
        error = refuse(file, saved(place, pickle_protocol=protocol), named, "torch.load")
        assert error.offset is not None
        # The byte is that of the opcode that names it.
        assert file.read_bytes()[error.offset : error.offset + 1] in (b"c", b"\x93", b"C")
        assert not sentinel.exists()


def test_the_attacks_would_work(file, tmp_path):
    """That nothing happened means something only where something would have."""
    sentinel = tmp_path / "executed"
    for name in ("system", "popen", "eval", "exec", "in a tuple", "as a key"):
        file.write_bytes(saved({"a": attacks(sentinel)[name][0]}))
        torch.load(file, weights_only=False)
        assert sentinel.exists(), name
        sentinel.unlink()
        with pytest.raises(FormatError):
            read_torch(file)
        assert not sentinel.exists(), name


def handmade(command: str) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Opcodes put between a dict's key and the end of the pickle, and what must be said."""
    system, run = global_("os", "system"), text(command)
    return {
        "reduce": (system + run + b"\x85R", ("'os.system'",)),
        "dotted name": (global_("torch", "serialization.os.system") + run + b"\x85R",
                        ("'torch.serialization.os.system'",)),
        "dotted module": (global_("torch._utils._rebuild_tensor_v2", "__globals__"),
                          ("__globals__",)),
        "stack global": (text("os") + text("system") + b"\x93" + run + b"\x85R", ("'os.system'",)),
        "stack global joined": (text("torch") + text("_utils._rebuild_tensor_v2") + b"\x93",
                                ("torch._utils._rebuild_tensor_v2",)),
        "stack global from the memo": (
            text("system") + b"q\x00" + b"\x85R" + text("os") + b"h\x00\x93", ("calls",)),
        "stack global of numbers": (b"K\x01K\x02\x93", ("not a string",)),
        "stack global of tuples": (text("os") + b"\x85" + text("system") + b"\x85\x93",
                                   ("not a string",)),
        "split over lines": (b"cos\nsys\ntem\n", ("'os.sys'",)),
        "other alphabets": ("cоs\nsystem\n".encode(), ("'оs.system'",)),
        "control characters": (b"co\x1b[31ms\nsystem\n", (r"o\x1b[31ms.system",)),
        "endless name": (b"c" + b"a" * 100_000, ("without end",)),
        "long name": (b"c" + b"a" * 300 + b"\nb\n", ("without end",)),
        "not UTF-8": (b"c\xff\n\xfe\n", ("UTF-8",)),
        "inst": (b"(" + run + b"ios\nsystem\n", ("INST",)),
        "obj": (b"(" + system + run + b"o", ("'os.system'",)),
        "obj of a known class": (b"(" + global_("collections", "OrderedDict") + b"o", ("OBJ",)),
        "newobj": (global_("collections", "OrderedDict") + b")\x81", ("NEWOBJ",)),
        "newobj_ex": (global_("torch", "Size") + b")}\x92", ("NEWOBJ_EX",)),
        "ext1": (b"\x82\x01", ("EXT1",)),
        "ext2": (b"\x83\x01\x00", ("EXT2",)),
        "ext4": (b"\x84\x01\x00\x00\x00", ("EXT4",)),
        "persid": (b"Pos.system\n", ("PERSID",)),
        "build on a dict": (b"}}b", ("BUILD", "dict", "__setstate__")),
        "build on a tensor": (tensor() + b"}b", ("BUILD", "a tensor")),
        "build on a global": (global_("torch", "Size") + b"}b", ("BUILD", "torch.Size")),
        "build on a list": (b"]}b", ("BUILD", "list")),
        "build with a tuple": (global_("collections", "OrderedDict") + b")RN}\x86b", ("BUILD",)),
        "call of a storage type": (global_("torch", "FloatStorage") + b")R",
                                   ("torch.FloatStorage",)),
        "call of an element type": (global_("torch", "float16") + b")R", ("torch.float16",)),
        "call of a string": (run + b")R", ("calls a value of type str",)),
        "call of a tuple": (b")" + b")R", ("calls",)),
        "arguments in a list": (global_("torch", "Size") + b"]R", ("tuple of arguments",)),
        "arguments of a dict": (global_("collections", "OrderedDict") + b"}\x85R", ("arguments",)),
        "buffers": (b"\x97", ("NEXT_BUFFER",)),
        "bytes": (b"C\x01x", ("SHORT_BINBYTES",)),
        "set": (b"\x8f", ("EMPTY_SET",)),
        "dup": (b"N2", ("DUP",)),
        "pop": (b"N0", ("POP",)),
        "pop_mark": (b"(1", ("POP_MARK",)),
        "put": (b"N" + b"p0\n", ("PUT",)),
        "long4": (b"\x8b\xff\xff\xff\x7f", ("LONG4",)),
        "unicode8": (b"\x8d" + b"\xff" * 8, ("BINUNICODE8",)),
        "int": (b"I1\n", ("INT",)),
        "unknown opcode": (b"\xff", ("0xff", "does not exist")),
        "second protocol": (b"\x80\x02N", ("protocol 2",)),
        "frame": (b"\x95" + b"\xff" * 8, ("frame",)),
        "memo not set": (b"h\x00", ("memo entry 0", "not set")),
        "memo far": (b"j\xff\xff\xff\xff", ("4,294,967,295",)),
        "memo put far": (b"Nr\xff\xff\xff\xff", ("4,294,967,295", "entry 0 is next")),
        "memo put again": (b"Nq\x00q\x00", ("entry 0", "entry 1 is next")),
        "memo of nothing": (b"(q\x00t", ("empty stack",)),
        "global memoised": (system + b"q\x00h\x00" + run + b"\x85R", ("'os.system'",)),
        "function from the memo": (run + b"q\x000h\x00" + b")R", ("POP",)),
        "mark left": (b"N(N.", ("unfinished",)),
        "marks missing": (b"tt", ("not begun",)),
        "under the mark": (b"(\x85", ("empty stack",)),
        "append to a dict": (b"}Na", ("appends",)),
        "append to a tuple": (b")Na", ("appends",)),
        "append to a storage": (global_("torch", "FloatStorage") + b"Na", ("torch.FloatStorage",)),
        "item of a list": (b"]NNs", ("sets an item",)),
        "odd items": (b"}(Nu", ("without a value",)),
        "tuple as key": (b"})Ns", ("key",)),
        "tensor as key": (b"}" + tensor() + b"Ns", ("a tensor", "key")),
        "key twice": (b"}(K\x01NK\x01Nu", ("twice",)),
        "string beyond the end": (b"X\x00\x00\x01\x00abc", ("middle",)),
        "huge string": (b"X\xff\xff\xff\xffabc", ("4,294,967,295",)),
        "string not UTF-8": (b"X\x01\x00\x00\x00\xff", ("UTF-8",)),
        "surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80", ("UTF-8",)),
        "a persistent id of nothing": (b"NQ", ("persistent id",)),
        "a module as persistent id": (text("module") + b"NNNN" + b"\x87Q", ("persistent id",)),
        "trailing": (b"Nu.cos\nsystem\n", ("follow the end",)),
    }  # fmt: skip


@pytest.mark.parametrize("name", handmade(""))
def test_a_handmade_pickle(file, tmp_path, name):
    sentinel = tmp_path / "executed"
    opcodes, words = handmade(f"touch '{sentinel}'")[name]
    pickled = b"\x80\x04}(" + text("b") + opcodes + b"u."
    refuse(file, archive(pickled), *words)
    assert not sentinel.exists()


def test_every_opcode_is_either_known_or_refused_by_name(file):
    for opcode in pickletools.opcodes:
        code = ord(opcode.code)
        if code not in torchpickle._OPCODES:
            refuse(file, archive(b"\x80\x02" + bytes([code])), f" {opcode.name};")
    names = {
        opcode.name for opcode in pickletools.opcodes if ord(opcode.code) in torchpickle._OPCODES
    }
    assert names == {
        "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
        "BININT2", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE1",
        "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM",
        "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
        "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
    }  # fmt: skip


def test_globals_are_data(file):
    """Every global that is let through stands for itself and is no code."""
    assert set(torchpickle._CALLS) == {
        "collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
    }  # fmt: skip
    for (module, name), value in torchpickle._GLOBALS.items():
        assert isinstance(value, torchpickle.Global)
        target: Any = __import__(module, fromlist=["x"])
        assert hasattr(target, name), (module, name)


def test_recursive_values(file):
    """Containers that hold themselves are no state dict's business and do no harm."""
    own = b"]q\x00h\x00a"
    file.write_bytes(archive(state(("l", own), ("a", tensor()))))
    assert set(read_torch(file).tensors) == {"a"}
    looped = b"\x80\x02}q\x00" + text("model") + b"h\x00s" + text("a") + tensor() + b"s."
    file.write_bytes(archive(looped))
    assert set(read_torch(file).tensors) == {"a"}


def test_a_value_that_doubles_with_every_opcode(file):
    """Two references to the value before, a thousand times: 2^1000 leaves, walked by nobody."""
    bomb = b"]q\x00"
    for i in range(1000):
        last = b"j" + struct.pack("<I", i)
        bomb += last + last + b"\x86r" + struct.pack("<I", i + 1)
    bomb = b"(" + bomb + b"t"
    begin = time.process_time()
    file.write_bytes(archive(state(("b", bomb), ("a", tensor()))))
    assert set(read_torch(file).tensors) == {"a"}
    refuse(file, archive(b"\x80\x02}" + bomb + b"Ns."), "key")
    refuse(file, archive(state(("b", bomb + b"R"))), "")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("limit", "value", "pickled", "word"),
    [
        ("_MOST_OPCODES", 1000, b"\x80\x02]" + b"Na" * 1000 + b".", "more than 1,000 opcodes"),
        ("_MOST_MEMO", 10, b"\x80\x04(" + b"N\x94" * 20 + b"t.", "more than 10 memo entries"),
        ("_DEEPEST_STACK", None, b"\x80\x02" + b"N" * 200_000 + b".", "stack"),
        ("_DEEPEST_MARKS", None, b"\x80\x02" + b"(" * 200_000 + b".", "stack"),
        ("_LONGEST_STRING", None, b"\x80\x02" + text("x" * 2_000_000) + b".", "2,000,000 bytes"),
    ],
)
def test_bounds(file, monkeypatch, limit, value, pickled, word):
    if value is not None:
        monkeypatch.setattr(torchpickle, limit, value)
    refuse(file, archive(pickled), word)


def test_deep_nesting_ends_quietly(file):
    """Deeper than Python's own stack: nothing here recurses, not even letting go of it."""
    for nest in (b")" + b"\x85" * 100_000, b"]" + b"]" * 50_000 + b"a" * 50_000):
        file.write_bytes(archive(state(("n", nest), ("a", tensor()))))
        assert set(read_torch(file).tensors) == {"a"}


def test_a_pickle_or_directory_too_large(file, monkeypatch):
    refuse(file, archive(bytes((1 << 25) + 1)), "'data.pkl'", "at most 33,554,432")
    monkeypatch.setattr(torchzip, "_LARGEST_DIRECTORY", 100)
    refuse(file, archive(state(("a", tensor()))), "directory")


# Tensors that lie.

BEYOND = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"  # 2^63 - 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": b"K\x01"}, ("reach element 6", "beyond the 6")),
        ({"offset": BEYOND}, ("beyond",)),
        ({"offset": b"J\xff\xff\xff\xff"}, ("storage offset", "-1")),
        ({"offset": b"G" + bytes(8)}, ("storage offset", "0.0")),
        ({"offset": b"\x88"}, ("storage offset", "True")),
        ({"offset": b"N"}, ("storage offset",)),
        ({"shape": b"K\x03K\x03\x86"}, ("reach element 8",)),
        ({"shape": b"J\xfe\xff\xff\xffK\x03\x86"}, ("shape", "-2")),
        ({"shape": BEYOND + BEYOND + b"\x86"}, ("too large",)),
        ({"shape": BEYOND + b"K\x00\x86"}, ("too large",)),
        ({"shape": b"\x8a\x09" + bytes(8) + b"\x01" + b"K\x03\x86"}, ("shape",)),
        ({"shape": b"K\x06\x85"}, ("1 sizes and 2 strides",)),
        ({"shape": b"(" + b"K\x01" * 40 + b"t", "stride": b"(" + b"K\x01" * 40 + b"t"}, ("shape",)),
        ({"shape": b"]"}, ("shape",)),
        ({"stride": b"K\x04K\x01\x86"}, ("reach element 6",)),
        ({"stride": BEYOND + BEYOND + b"\x86"}, ("beyond",)),
        ({"stride": b"J\xfd\xff\xff\xffK\x01\x86"}, ("stride", "-3")),
        ({"count": b"K\x07"}, ("24 bytes", "promises 28")),
        ({"count": b"K\x05"}, ("24 bytes", "promises 20")),
        ({"count": BEYOND}, ("24 bytes",)),
        ({"count": b"J\xff\xff\xff\xff"}, ("persistent id",)),
        ({"count": b"\x88"}, ("persistent id",)),
        ({"type": b"ctorch\nDoubleStorage\n"}, ("promises 48",)),
        ({"type": b"ctorch\nfloat32\n"}, ("persistent id",)),
        ({"type": b"ctorch.storage\nUntypedStorage\n"}, ("an untyped storage",)),
        ({"type": b"ctorch.storage\nTypedStorage\n"}, ("torch.storage.TypedStorage",)),
        ({"key": b"1"}, ("'1' is missing",)),
        ({"key": b"../byteorder"}, ("is missing",)),
        ({"key": b"/etc/passwd"}, ("is missing",)),
        ({"key": b""}, ("is missing",)),
        ({"grad": b"N"}, ("wrong arguments",)),
        ({"hooks": b"K\x01"}, ("wrong arguments",)),
        ({"hooks": b"}K\x01"}, ("wrong metadata",)),
        ({"hooks": b"}}}"}, ("number of arguments",)),
    ],
)
def test_a_tensor_that_lies(file, changes, words):
    changes = dict(changes)
    refuse(file, archive(state(("a", tensor(changes.pop("key", b"0"), **changes)))), *words)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"ctorch._utils\n_rebuild_parameter\n)R",
        b"ctorch._utils\n_rebuild_parameter\nNNN\x87R",
        b"ctorch._utils\n_rebuild_parameter_with_state\nNNN\x87R",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ctorch._utils\n_rebuild_tensor_v3\n)R",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR",
        b"ctorch._utils\n_rebuild_tensor_v3\n(NNNNNNNtR",
        b"ctorch\nSize\n)R",
        b"ctorch\nSize\nK\x01\x85R",
        b"ctorch\nSize\n" + text("x") + b"\x85\x85R",
    ],
)
def test_wrong_arguments(file, opcodes):
    refuse(file, archive(state(("a", opcodes))))


def test_an_element_type_that_is_none(file):
    def typed(dtype: bytes) -> bytes:
        opcodes = tensor(type=b"ctorch.storage\nUntypedStorage\n", count=b"K\x18")
        return opcodes.replace(b"_v2", b"_v3").removesuffix(b"tR") + dtype + b"tR"

    file.write_bytes(archive(state(("a", typed(b"ctorch\nfloat32\n")))))
    assert store_of(file).read("a").shape == (2, 3)
    refuse(file, archive(state(("a", typed(b"ctorch\nfloat64\n")))), "reach element 5", "the 3")
    refuse(file, archive(state(("a", typed(b"ctorch\nFloatStorage\n")))), "torch.FloatStorage")
    refuse(file, archive(state(("a", typed(b"N")))), "element type")
    refuse(file, archive(state(("a", typed(b"ctorch\nfloat4\n")))), "'torch.float4'")


# Malicious archives.

GOOD = state(("a", tensor()))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../w/data/1", "w/../x", "w/data/..", "w/./x", "w//x", "w/data/", "/", "",
     "w\\data\\1", "C:/x", "w/data/1\0x", "..", "w/..\\x"],
)  # fmt: skip
def test_entries_with_names_that_lead_elsewhere(file, name):
    data = archive(GOOD, [("w/data/0", bytes(24)), (name, b"x")])
    refuse(file, data, "an entry named", "do not trust")


@pytest.mark.parametrize("name", ["x", "v/data/1", "W/data/1"])
def test_entries_beside_the_folder(file, name):
    refuse(file, archive(GOOD, [("w/data/0", bytes(24)), (name, b"x")]), "outside its folder")


@pytest.mark.parametrize("name", ["w/data/0", "w/data.pkl", "w/DATA.pkl", "w/Data/0"])
def test_entries_twice(file, name):
    refuse(file, archive(GOOD, [("w/data/0", bytes(24)), (name, GOOD)]), "twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries(file, method):
    refuse(file, archive(GOOD, method=method), "compressed")
    bomb = archive(GOOD, [("w/data/0", bytes(10_000_000))], method=method)
    assert len(bomb) < 100_000
    refuse(file, bomb, "compressed")


def test_no_data_pkl(file):
    refuse(file, archive(None), "'data.pkl'")
    refuse(file, archive(None, [("w/x/data.pkl", GOOD)]), "'data.pkl'")
    refuse(file, archive(None, []), "")


def patched(data: bytes, name: str, field: int, layout: str, value: int) -> bytes:
    """`data` with a field of an entry in the central directory overwritten."""
    out = bytearray(data)
    at = out.rindex(name.encode()) - 46
    assert out[at : at + 4] == b"PK\x01\x02"
    struct.pack_into(layout, out, at + field, value)
    return bytes(out)


FLAGS, METHOD, CRC, PACKED, SIZE, OFFSET = 8, 10, 16, 20, 24, 42


def test_entries_that_overlap_or_lie_outside(file):
    data = archive(GOOD)

    def resized(size: int) -> bytes:
        return patched(patched(data, "w/data/0", SIZE, "<I", size), "w/data/0", PACKED, "<I", size)

    refuse(file, resized(30), "overlaps")
    refuse(file, resized(1 << 31), "entry 'w/data/0'", "behind the entries' end")
    one = archive(GOOD, [("w/data/0", bytes(24))])
    longer = patched(patched(one, "w/data/0", SIZE, "<I", 99), "w/data/0", PACKED, "<I", 99)
    refuse(file, longer, "behind the entries' end")
    begin = data.index(b"PK\x03\x04", 4)
    refuse(file, patched(data, "w/byteorder", OFFSET, "<I", begin), "in its own header")
    refuse(file, patched(data, "w/byteorder", OFFSET, "<I", begin + 1), "no header")
    refuse(file, patched(data, "w/byteorder", OFFSET, "<I", len(data) - 5), "outside")
    # A second directory record for the same bytes: quines and overlapping bombs are made so.
    same = archive(GOOD, [("w/data/0", bytes(24)), ("w/data/1", b"")])
    same = patched(same, "w/data/1", OFFSET, "<I", begin).replace(b"w/data/1", b"w/data/0")
    refuse(file, same, "twice")


def test_entries_that_are_not_what_they_seem(file):
    data = archive(GOOD)
    refuse(file, patched(data, "w/data/0", FLAGS, "<H", 1), "encrypted")
    refuse(file, patched(data, "w/data/0", METHOD, "<H", 8), "compressed")
    refuse(file, patched(data, "w/data/0", SIZE, "<I", 1 << 30), "compressed")
    refuse(file, patched(data, "w/data.pkl", CRC, "<I", 1), "checksum")
    refuse(file, data.replace(b"w/data/0", b"w/data/9", 1), "in its own header")
    local = bytearray(data)
    struct.pack_into("<H", local, data.index(b"PK\x03\x04", 4) + 8, 8)
    refuse(file, bytes(local), "in its own header")


def test_the_records_at_the_end(file):
    def end(data: bytes, at: int, layout: str, value: int) -> bytes:
        out = bytearray(data)
        struct.pack_into(layout, out, len(data) + at, value)
        return bytes(out)

    data, zip64 = archive(GOOD), saved({"a": torch.ones(2)})
    refuse(file, end(data, -18, "<H", 1), "several")
    refuse(file, end(data, -14, "<H", 4), "several")
    refuse(file, end(end(data, -14, "<H", 4), -12, "<H", 4), "counts 4")
    refuse(file, end(data, -10, "<I", 9), "not where its end says")
    refuse(file, end(data, -6, "<I", 9), "not where its end says")
    refuse(file, end(data, -2, "<H", 1), "does not end")
    for at, layout, word in (
        (-22 - 20 + 4, "<I", "contradict"), (-22 - 20 + 8, "<Q", "contradict"),
        (-22 - 20 + 16, "<I", "contradict"), (-22 - 20 - 56, "<I", "contradict"),
        (-22 - 20 - 56 + 4, "<Q", "contradict"), (-22 - 20 - 56 + 24, "<Q", "differ"),
        (-22 - 20 - 56 + 40, "<Q", "differ"), (-22 - 20 - 56 + 48, "<Q", "differ"),
        (-22 + 10, "<H", "differ"), (-22 + 16, "<I", "differ"),
    ):  # fmt: skip
        refuse(file, end(zip64, at, layout, 77), word)
    # Saturated fields leave the word to the zip64 record.
    saturated = end(end(zip64, -10, "<I", 0xFFFFFFFF), -6, "<I", 0xFFFFFFFF)
    file.write_bytes(saturated)
    assert set(read_torch(file).tensors) == {"a"}


def test_something_before_the_archive(file):
    """Zip tools skip what precedes an archive; another reader would see another file."""
    data = archive(GOOD)
    refuse(file, b"#!/bin/sh\n" + data, "not a zip")
    refuse(file, data + data, "not where its end says")


# Fuzzing.


def _mutated(rng: random.Random, data: bytes, opcodes: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            out[at] = rng.choice(opcodes)
        elif kind == 3:
            del out[at : at + rng.choice((1, 1, 2, 4, 20, len(out)))]
        elif kind == 4:
            out[at:at] = bytes([rng.choice(opcodes)])
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 30)))
        elif kind == 6:  # copy a piece elsewhere
            other = rng.randrange(len(out))
            out[at:at] = out[other : other + rng.choice((1, 2, 8, 40))]
        else:  # extreme numbers
            out[at : at + 4] = rng.choice(
                (b"\xff" * 4, bytes(4), b"\0\0\0\x80", b"\xff\xff\xff\x7f")
            )
    return bytes(out)


def _count(file: Path, datas: Iterable[bytes]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    messages: set[str] = set()
    # Rewritten in place: to empty a file first costs a millisecond each time.
    with file.open("wb", buffering=0) as out:
        for data in datas:
            out.seek(0)
            out.write(data)
            out.truncate()
            try:
                store = store_of(file)
                for name in store:
                    store.read(name)
                outcomes["fine"] += 1
            except CkptError as problem:
                outcomes[type(problem).__name__] += 1
                messages.add(str(problem))
    assert all(message.isprintable() for message in messages)
    return outcomes


def test_ten_thousand_mutations(file):
    """Half of the file as it is, half of the pickle inside a sound file."""
    parameter = torch.nn.Parameter(torch.ones(3))
    whole = OrderedDict(a=torch.randn(2, 3), b=torch.ones(2).to(torch.float8_e5m2), p=parameter)
    datas = [saved(whole), saved({"model": whole, "n": [1, (2.5, "x")]}, pickle_protocol=4)]
    contents = []
    for data in datas:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            contents.append({name: opened.read(name) for name in opened.namelist()})
    opcodes = b"".join(o.code.encode("latin-1") for o in pickletools.opcodes)
    rng = random.Random(20_240)
    begin = time.process_time()

    def files() -> Iterable[bytes]:
        for i in range(5_000):
            yield _mutated(rng, datas[i % 2], opcodes)

    def pickles() -> Iterable[bytes]:
        for i in range(5_000):
            entries = contents[i % 2]
            pickled = _mutated(rng, entries["archive/data.pkl"], opcodes)
            rest = [(n, c) for n, c in entries.items() if n != "archive/data.pkl"]
            yield archive(None, [("archive/data.pkl", pickled), *rest])

    modules = set(sys.modules)
    outer, inner = _count(file, files()), _count(file, pickles())
    seconds = time.process_time() - begin
    assert sum(outer.values()) + sum(inner.values()) == 10_000
    # Both halves go deep: some mutations change nothing that matters to the reader.
    assert outer["fine"] > 100
    assert inner["fine"] > 10
    assert outer["FormatError"] > 1000
    assert inner["FormatError"] > 1000
    # Nothing a pickle named was imported.
    assert {m for m in set(sys.modules) - modules if not m.startswith("ckptforensics")} <= {"gguf"}
    assert seconds < 60


def test_pickles_of_random_opcodes(file):
    """Sound arguments, random order: the stack machine's own rules."""
    pieces = [
        b"N", b"\x88", b"K\x05", b"M\x05\x00", b"J\x05\x00\x00\x00", b"G" + bytes(8),
        b"\x8a\x01\x05", text("a"), text("storage"), b")", b"]", b"}", b"(", b"t", b"a", b"e",
        b"s", b"u", b"\x85", b"\x86", b"\x87", b"\x94", b"h\x00", b"h\x01", b"Q", b"R", b"b",
        b"\x93", tensor(), global_("collections", "OrderedDict"), global_("torch", "FloatStorage"),
        global_("torch", "Size"), global_("torch._utils", "_rebuild_parameter"), b".",
    ]  # fmt: skip
    rng = random.Random(7)

    def pickles() -> Iterable[bytes]:
        for _ in range(2_000):
            yield archive(
                b"\x80\x04" + b"".join(rng.choices(pieces, k=rng.randrange(1, 40))) + b"."
            )

    assert sum(_count(file, pickles()).values()) == 2_000
