"""Parameters to a file and back, a part of them, and files of other models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from geminid.train.params import load_params, named, params_of, save_params


class Layer(nnx.Module):
    def __init__(self, width: int, seed: int):
        rng = np.random.default_rng(seed)
        self.weight = nnx.Param(jnp.asarray(rng.standard_normal((width, width)), jnp.float32))
        self.scale = nnx.Param(jnp.asarray(rng.standard_normal(()), jnp.float32))

    def __call__(self, x):
        return x @ self.weight[...] * self.scale[...]


class Tower(nnx.Module):
    def __init__(self, depth: int = 2, width: int = 3, seed: int = 0):
        self.layers = nnx.List([Layer(width, seed + i) for i in range(depth)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Pair(nnx.Module):
    def __init__(self, seed: int):
        self.encoder = Tower(seed=seed)
        self.heads = Layer(4, seed + 9)


def same(a: nnx.Module, b: nnx.Module) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), params_of(a), params_of(b))))


def test_names_are_paths():
    assert set(named(params_of(Pair(0)))) == {
        "encoder/layers/0/scale",
        "encoder/layers/0/weight",
        "encoder/layers/1/scale",
        "encoder/layers/1/weight",
        "heads/scale",
        "heads/weight",
    }


def test_what_is_saved_is_loaded(tmp_path):
    file = tmp_path / "some" / "where" / "params.safetensors"
    tower, other = Tower(seed=1), Tower(seed=5)
    save_params(file, params_of(tower))
    assert [path.name for path in file.parent.iterdir()] == ["params.safetensors"]
    np.testing.assert_array_equal(load_file(file)["layers/1/weight"], tower.layers[1].weight[...])
    loaded = load_params(file, other)
    assert same(loaded, tower) and not same(other, tower)
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(loaded(x), tower(x))


def test_ten_layers_keep_their_order(tmp_path):
    tower = Tower(depth=11, width=2, seed=20)
    save_params(tmp_path / "p", params_of(tower))
    assert same(load_params(tmp_path / "p", Tower(depth=11, width=2)), tower)


def test_a_prefix_chooses_a_part(tmp_path):
    pair = Pair(1)
    save_params(tmp_path / "p", params_of(pair))
    assert same(load_params(tmp_path / "p", Tower(seed=7), "encoder/"), pair.encoder)
    with pytest.raises(ValueError, match="holds nothing for 'decoder/layers/0/scale'"):
        load_params(tmp_path / "p", Tower(), "decoder/")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Tower(width=4), r"holds shape \(3, 3\) for 'layers/0/weight', the model needs \(4, 4\)"),
        (Tower(depth=3), "holds nothing for 'layers/2/scale'"),
        (Layer(3, 0), "holds nothing for 'scale'"),
    ],
)
def test_the_file_of_another_model_is_refused(tmp_path, other, message):
    save_params(tmp_path / "p", params_of(Tower()))
    with pytest.raises(ValueError, match=message) as caught:
        load_params(tmp_path / "p", other)
    assert "it is of another recipe" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "encoder/"])
def test_the_file_of_a_deeper_model_is_refused(tmp_path, prefix):
    params = params_of(Tower(depth=3))
    save_params(tmp_path / "p", {"encoder": params, "heads": {"w": np.zeros(2)}} if prefix else params)
    with pytest.raises(ValueError, match="another recipe"):
        load_params(tmp_path / "p", Tower(depth=2), prefix)


def test_no_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="that stage is not finished; run the training again"):
        load_params(tmp_path / "p", Tower())


@pytest.mark.parametrize("damage", ["truncated", "a few bytes", "empty", "random"])
def test_a_broken_file_says_what_to_do(tmp_path, damage):
    file = tmp_path / "p"
    save_params(file, params_of(Tower()))
    whole = file.read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole))
    file.write_bytes({"truncated": whole[:-5], "a few bytes": whole[:5], "empty": b"", "random": noise}[damage])
    with pytest.raises(ValueError, match="is not a complete safetensors file") as caught:
        load_params(file, Tower())
    message = str(caught.value)
    assert message.startswith(str(file)) and message.endswith("; delete it and run the training again")
    assert "\n" not in message
