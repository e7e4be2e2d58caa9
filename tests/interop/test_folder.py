"""Folders of weights: read whole or refused in one line, on really damaged files; written whole or not at all."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from geminid.interop.folder import INDEX, WEIGHTS, read_file, read_folder, read_object, write_folder

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], jnp.bfloat16),
    "c": np.array([0.1], np.float16),
}


def one_line(function, *arguments) -> str:
    """The message of the ValueError."""
    with pytest.raises(ValueError, match=r"^[^\n]{10,600}$") as found:
        function(*arguments)
    return str(found.value)


def write_shards(folder: Path) -> None:
    write_folder(folder, {}, TENSORS, shard_bytes=10)


def edit_index(folder: Path, change) -> None:
    values = json.loads((folder / INDEX).read_text())
    change(values)
    (folder / INDEX).write_text(json.dumps(values))


# --- whole ---


@pytest.mark.parametrize("shard_bytes", [10**9, 26, 10, 1])
def test_tensors_come_back_byte_for_byte(shard_bytes, tmp_path):
    write_folder(tmp_path / "out", {"x": 1}, TENSORS, shard_bytes=shard_bytes, others={"tokenizer.model": b"pieces"})
    found = read_folder(tmp_path / "out")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert np.asarray(found[name]).tobytes() == tensor.tobytes()
    assert read_object(tmp_path / "out" / "config.json") == {"x": 1}
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shards_are_no_larger_than_asked_and_the_index_names_all(tmp_path):
    tensors = {f"t{i}": np.zeros(10, np.float32) for i in range(7)}
    write_folder(tmp_path / "out", {}, tensors, shard_bytes=100)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [len(load_file(file)) for file in files] == [2, 2, 2, 1]
    index = read_object(tmp_path / "out" / INDEX)
    assert index["metadata"]["total_size"] == 280
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}


def test_a_cast_is_numpys(tmp_path):
    write_folder(tmp_path / "out", {}, TENSORS, "bfloat16")
    for name, tensor in read_folder(tmp_path / "out").items():
        assert np.asarray(tensor).tobytes() == TENSORS[name].astype(jnp.bfloat16).tobytes()


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    write_folder(tmp_path / "out", {"x": 1}, TENSORS)
    assert "is there already" in one_line(write_folder, tmp_path / "out", {"x": 2}, TENSORS)
    assert read_object(tmp_path / "out" / "config.json") == {"x": 1}


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_folder(tmp_path / "out", {}, TENSORS, others={"tokenizer.model": 7})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


# --- damaged ---


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_file_cut_at_any_byte_is_one_line(tmp_path, data):
    save_file(TENSORS, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    end = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / WEIGHTS).write_bytes(content[:end])
    assert "is not a whole safetensors file" in one_line(read_file, tmp_path / WEIGHTS)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.data())
def test_a_file_with_a_wrong_byte_is_read_or_one_line(tmp_path, data):
    """A wrong byte of a number cannot be seen; of the header it must not end in anything but a ValueError."""
    save_file(TENSORS, tmp_path / "whole.safetensors")
    content = bytearray((tmp_path / "whole.safetensors").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / WEIGHTS).write_bytes(content)
    try:
        arrays = {name: np.asarray(tensor) for name, tensor in read_file(tmp_path / WEIGHTS).items()}
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert sum(array.nbytes for array in arrays.values()) == 30


def test_more_bytes_than_the_header_says_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes() + b"x")
    assert "is not a whole safetensors file" in one_line(read_file, tmp_path / WEIGHTS)


def test_whole_numbers_are_no_weights(tmp_path):
    save_file({"a": np.zeros(2, np.int8)}, tmp_path / WEIGHTS)
    assert one_line(read_file, tmp_path / WEIGHTS).endswith("not F32, BF16, F16: a I8")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "model.pth", "last.ckpt", "w.npy", "w.pkl"])
def test_a_pickle_is_refused_and_not_opened(name, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "weights").mkdir()

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (ran,))

    (tmp_path / "weights" / name).write_bytes(pickle.dumps(Bomb()))
    assert f"a pickle ({name}), which can run any code" in one_line(read_folder, tmp_path / "weights")
    assert not ran.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_under_another_name_is_named(protocol, tmp_path):
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps({"a": list(range(100))}, protocol))
    assert f"{WEIGHTS} is a pickle, which can run" in one_line(read_folder, tmp_path)


def test_an_archive_of_pickles_under_another_name_is_named(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{}], object))
    (tmp_path / "w.npz").rename(tmp_path / WEIGHTS)
    assert f"{WEIGHTS} is a pickle, which can run" in one_line(read_folder, tmp_path)


def test_a_folder_without_weights_says_what_is_there(tmp_path):
    (tmp_path / "readme.txt").touch()
    assert "there are: readme.txt" in one_line(read_folder, tmp_path)


# --- the index ---


def test_both_forms_at_once_are_refused(tmp_path):
    write_shards(tmp_path / "x")
    save_file(TENSORS, tmp_path / "x" / WEIGHTS)
    assert "holds both" in one_line(read_folder, tmp_path / "x")


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path / "x")
    (tmp_path / "x" / "model-00001-of-00002.safetensors").unlink()
    assert "files that are not there: model-00001-of-00002.safetensors" in one_line(read_folder, tmp_path / "x")


def test_tensors_that_the_index_does_not_name_are_listed(tmp_path):
    write_shards(tmp_path / "x")
    edit_index(tmp_path / "x", lambda values: values["weight_map"].pop("c"))
    assert "do not agree about: c" in one_line(read_folder, tmp_path / "x")


def test_tensors_that_the_index_alone_names_are_listed(tmp_path):
    write_shards(tmp_path / "x")
    edit_index(tmp_path / "x", lambda values: values["weight_map"].update(d="model-00001-of-00002.safetensors"))
    assert "do not agree about: d" in one_line(read_folder, tmp_path / "x")


def test_a_tensor_in_two_files_is_named(tmp_path):
    write_shards(tmp_path / "x")
    save_file(
        {"a": TENSORS["a"], "b": TENSORS["b"], "c": TENSORS["c"]}, tmp_path / "x" / "model-00002-of-00002.safetensors"
    )
    assert "another file holds too: a" in one_line(read_folder, tmp_path / "x")


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_names_safetensors_beside_it_only(place, tmp_path):
    write_shards(tmp_path / "x")
    edit_index(tmp_path / "x", lambda values: values["weight_map"].update(a=place))
    assert f"not safetensors files beside it: {place}" in one_line(read_folder, tmp_path / "x")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_one_line(content, tmp_path):
    (tmp_path / INDEX).write_bytes(content)
    one_line(read_folder, tmp_path)


def test_deep_json_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    one_line(read_object, tmp_path / "config.json")
