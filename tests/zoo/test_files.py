from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hoplon.errors import DataError
from hoplon.zoo.files import data_file, read_arrays, read_state_dict


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(600.0).reshape(3, 200), y=np.array([0, 1, 2]))
    return path


class Custom:
    pass


def test_data_file_is_found_in_the_folder(monkeypatch, archive):
    monkeypatch.setenv("HOPLON_DATA", str(archive.parent))
    assert data_file("data.npz") == archive


@pytest.mark.parametrize("setting", [None, ""])
def test_unset_folder_says_what_to_set(monkeypatch, setting):
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    if setting is not None:
        monkeypatch.setenv("HOPLON_DATA", setting)
    with pytest.raises(DataError) as caught:
        data_file("cifar10-test.npz")
    assert str(caught.value) == (
        "expected cifar10-test.npz in HOPLON_DATA, which is not set; set HOPLON_DATA to the folder that holds it "
        "(README of the data folder lists the files)"
    )


def test_missing_folder_missing_file_and_a_file_for_a_folder_are_told_apart(monkeypatch, archive):
    monkeypatch.setenv("HOPLON_DATA", str(archive.parent / "nowhere"))
    with pytest.raises(DataError, match=r"expected HOPLON_DATA to be a folder with .*nowhere, which does not exist"):
        data_file("cifar10-test.npz")
    monkeypatch.setenv("HOPLON_DATA", str(archive))
    with pytest.raises(DataError, match=r"expected HOPLON_DATA to be a folder .*data\.npz, which is a file"):
        data_file("cifar10-test.npz")
    monkeypatch.setenv("HOPLON_DATA", str(archive.parent))
    with pytest.raises(DataError, match=r"expected cifar10-test\.npz in HOPLON_DATA = .*, which has no such file"):
        data_file("cifar10-test.npz")


def test_arrays_come_back_by_name(archive):
    arrays = read_arrays(archive, lambda names: ["x", *({"y", "classes"} & {*names})])
    assert sorted(arrays) == ["x", "y"]
    assert arrays["y"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(arrays["x"], np.arange(600.0).reshape(3, 200))


def test_absent_array_is_named_with_those_present(archive):
    with pytest.raises(DataError, match=r"expected the arrays x, label in .*data\.npz, got x, y"):
        read_arrays(archive, ["x", "label"])


@pytest.mark.parametrize("kept", [0, 10, 700, -1])
def test_truncated_archive_is_refused(archive, kept):
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"data\.npz"):
        read_arrays(archive, ["x", "y"])


def test_damaged_content_is_refused(archive):
    content = bytearray(archive.read_bytes())
    content[300] ^= 0xFF  # inside the values of x: the checksum of the entry no longer fits
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"expected a whole \.npz file, got .*data\.npz"):
        read_arrays(archive, ["x", "y"])


def test_objects_text_and_single_arrays_are_refused(tmp_path):
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([Custom()], dtype=object), y=np.array([0]))
    with pytest.raises(DataError, match=r"readable without pickle, in .*objects\.npz"):
        read_arrays(objects, ["x", "y"])
    pickled = tmp_path / "pickled.npz"
    pickled.write_bytes(pickle.dumps({"x": [1]}))
    with pytest.raises(DataError, match=r"readable without pickle, in .*pickled\.npz"):
        read_arrays(pickled, ["x", "y"])
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    with pytest.raises(DataError, match=r"expected an \.npz file with x, y, got the single array .*single\.npy"):
        read_arrays(single, ["x", "y"])
    with pytest.raises(DataError, match=r"absent\.npz, which does not exist"):
        read_arrays(tmp_path / "absent.npz", ["x", "y"])


def test_state_dict_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "net.pt"
    written = torch.nn.Linear(3, 2).state_dict()
    torch.save(written, path)
    read = read_state_dict(path)
    assert list(read) == ["weight", "bias"]
    assert all(torch.equal(read[name], written[name]) for name in written)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_truncated_state_dict_is_refused(tmp_path, kept):
    path = tmp_path / "net.pt"
    torch.save(torch.nn.Linear(30, 20).state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"expected a whole state dict, got .*net\.pt"):
        read_state_dict(path)


def test_state_dict_with_anything_but_tensors_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(Custom(), path)
    with pytest.raises(DataError, match=r"expected a whole state dict, got .*net\.pt"):
        read_state_dict(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(DataError, match=r"expected a state dict \(tensors by name\) in .*net\.pt, got a list"):
        read_state_dict(path)
