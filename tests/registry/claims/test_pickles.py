"""Globals of pickles, which are listed and never imported."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from ckptforensics.registry.claims.pickles import globals_in, is_harmful


class _Harm:
    def __reduce__(self):
        return os.system, ("touch HARMED",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_harm_is_named_in_every_protocol(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps({"w": [1, _Harm()]}, protocol=protocol))
    (name,) = globals_in(file)
    assert name.endswith(".system")
    assert is_harmful(name)
    assert not (tmp_path / "HARMED").exists()


def test_harm_behind_another_pickle_and_in_an_archive(tmp_path):
    file = tmp_path / "old.pt"
    file.write_bytes(pickle.dumps({"a": 1}) + pickle.dumps(_Harm()))
    assert any(map(is_harmful, globals_in(file)))
    archive = tmp_path / "new.pt"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", pickle.dumps(_Harm()))
    assert any(map(is_harmful, globals_in(archive)))


def test_plain_data_name_nothing(tmp_path):
    data = collections.OrderedDict(w=torch.zeros(3), h=torch.zeros(2, dtype=torch.bfloat16))
    torch.save(data, tmp_path / "a.pt")
    torch.save(data, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"x": np.zeros(3), "y": {1, 2}}))
    for name in ("a.pt", "b.pt", "c.pkl"):
        assert globals_in(tmp_path / name) == []


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff", b"PK\x03\x04", b"c"]
)
def test_what_is_no_pickle_names_nothing(data, tmp_path):
    (tmp_path / "x.pt").write_bytes(data)
    assert globals_in(tmp_path / "x.pt") == []
