"""`geminid import` and `geminid export` on folders and files, and what they answer to broken ones; no torch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file, save_file

from geminid import recipes
from geminid.interop.folder import read_folder, read_object, write_folder
from geminid.interop.pieces import sentencepiece_model
from geminid.interop.towers import plain_names
from geminid.interop.weights import export_weights, import_weights, load_model
from geminid.overrides import override
from geminid.tokens.ids import IdSpace
from geminid.tokens.text import train_tokenizer
from geminid.train import joint, pretrain
from geminid.train.params import params_of, save_params
from geminid.train.rundir import RunDir, write_json
from tests.helpers import filled
from tests.interop import small
from tests.interop.test_towers import fixture
from tests.test_house import run_command

pytestmark = pytest.mark.usefixtures("quick_compiles")
FIXTURES = ("gemma3_text", "gemma3_pictures")
TOKENIZER = sentencepiece_model(
    ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a"], [0.0] * 6, [3, 3, 3, 2, 1, 1],
    {"unknown": 3, "bos": 2, "eos": 1, "padding": 0}, add_space=False,
)  # fmt: skip


def model_folder(path: Path, name: str = "gemma3_text", dtype: str = "float32", **changes) -> dict[str, np.ndarray]:
    """Writes a folder as transformers does, with a tokenizer's files -> its tensors, under the released names."""
    values, weights, _ = fixture(name)
    tensors = {key: value.astype(jnp.dtype(dtype)) for key, value in weights.items()}
    write_folder(
        path, values, tensors, others={"tokenizer.model": TOKENIZER, "chat_template.jinja": b"{{ x }}"}, **changes
    )
    return plain_names(tensors)


def one_line(function, *arguments) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]{10,600}$") as found:
        function(*arguments)
    return str(found.value)


# --- in and out ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", FIXTURES)
def test_in_and_out_again_every_tensor_is_byte_equal(name, dtype, tmp_path):
    given = model_folder(tmp_path / "theirs", name, dtype, shard_bytes=12_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    result = import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == given.keys()
    for key, tensor in given.items():
        assert (found[key].dtype, found[key].tobytes()) == (tensor.dtype, tensor.tobytes())
    for file in ("config.json", "tokenizer.model", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert (result["dtypes"], result["num_tensors"]) == ([dtype], len(given))
    assert result["num_params"] == sum(tensor.size for tensor in given.values())


def test_a_folder_that_was_imported_is_the_same_model(tmp_path):
    model_folder(tmp_path / "theirs")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    _, _, arrays = fixture("gemma3_text")
    ids, present = arrays["ids"], arrays["present"]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    decoder = load_model(tmp_path / "ours")
    got = np.asarray(jax.jit(small.text_logits)(decoder, ids, present.astype(np.int32), positions))
    assert small.difference(got[present], arrays["logits"][present]) < small.MOST


def test_a_cast_reaches_tensors_and_config(tmp_path):
    given = model_folder(tmp_path / "theirs", "gemma3_pictures")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours", "bfloat16")
    values = read_object(tmp_path / "ours" / "config.json")
    assert (values["dtype"], values["text_config"]["dtype"], values["vision_config"]["dtype"]) == ("bfloat16",) * 3
    for key, tensor in read_folder(tmp_path / "ours").items():
        assert np.asarray(tensor).tobytes() == given[key].astype(jnp.bfloat16).tobytes()


def test_a_second_copy_of_the_embedding_is_left_out_if_it_is_one(tmp_path):
    given = model_folder(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    save_file(given | {"lm_head.weight": given["model.embed_tokens.weight"]}, file)
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    assert read_folder(tmp_path / "ours").keys() == given.keys()
    save_file(given | {"lm_head.weight": given["model.embed_tokens.weight"] + 1}, file)
    assert "lm_head.weight is not the embedding" in one_line(import_weights, str(tmp_path / "theirs"), tmp_path / "x")


# --- mistakes: one line, exit code 2, nothing written ---


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": np.zeros(17, np.float32)}, folder / "model.safetensors")


def missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def another_family(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"conformer.0.norm.weight": np.zeros(16, np.float32)}, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def edited(**changes):
    def edit(folder: Path) -> None:
        values = read_object(folder / "config.json") | changes
        (folder / "config.json").write_text(json.dumps(values))

    return edit


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (cut, "model.safetensors is not a whole safetensors file"),
        (wrong_shape, "tensors of another shape: model.norm.weight [17], not [16]"),
        (missing, "tensors missing: model.norm.weight"),
        (another_family, "tensors not known: conformer.0.norm.weight"),
        (pickled, "holds no weights but a pickle (pytorch_model.bin), which can run any code when it is read"),
        (edited(model_type="llama"), "'model_type' is 'llama'; known: gemma3_text, gemma3 (with pictures)"),
        (edited(num_hidden_layers=4, layer_types=None), "not known: model.layers.4.input_layernorm.weight"),
        (edited(num_experts=4), "not known and may change the sums: 'num_experts' 4"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    ],
)
def test_what_is_broken_is_one_line_and_nothing_is_written(spoil, line, capsys, tmp_path):
    model_folder(tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    code, out, err = run_command(capsys, "import", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_sources_that_are_none(capsys, tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "w.safetensors").write_bytes(b"")
    for source, line in (
        ("no/such", "no/such: no such folder or file, and no known model (gemma3-270m)"),
        (str(tmp_path / "w.pt"), "w.pt is a pickle or may hold one"),
        (str(tmp_path / "w.safetensors"), "give the folder that holds it and config.json"),
    ):
        code, _, err = run_command(capsys, "import", source, "--out", str(tmp_path / "ours"))
        assert (code, err.count("\n")) == (2, 1)
        assert line in err
    model_folder(tmp_path / "theirs")
    assert "unknown dtype 'int8'" in one_line(import_weights, str(tmp_path / "theirs"), tmp_path / "ours", "int8")
    assert "is there already" in one_line(import_weights, str(tmp_path / "theirs"), tmp_path / "theirs")


# --- our own runs ---


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A finished run whose parameters are random."""
    recipe = override(recipes.get("demo"), ["decoder.num_layers=2", "text.vocab_size=300", "codec.width=16"])
    run = RunDir(tmp_path / "run")
    run.claim(recipe)
    train_tokenizer(["a cat and a dog"] * 20, 300, run.tokenizer)
    write_json(run.names, {"en": {"cat": "cat"}})
    size = IdSpace.load(recipe, run.tokenizer).size
    save_params(run.params("joint"), params_of(filled(lambda: joint.make_model(recipe, size), 0.1, 1)))
    save_params(run.params("codec"), params_of(filled(lambda: pretrain.make_codec(recipe), 0.1, 2)))
    return run


def test_a_run_goes_out_and_comes_in_again_with_the_same_bytes(run, tmp_path):
    result = export_weights(run.path, tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    saved = load_file(run.params("joint"))
    assert {name.removeprefix("model/") for name in out if name.startswith("model/")} == saved.keys()
    assert result["num_params"] == sum(tensor.size for tensor in out.values())
    assert read_object(tmp_path / "out" / "config.json")["model_type"] == "geminid"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"
    import_weights(str(tmp_path / "out"), tmp_path / "again")
    again = RunDir(tmp_path / "again")
    assert again.recipe() == run.recipe()
    for stage in ("joint", "codec"):
        assert {n: t.tobytes() for n, t in load_file(again.params(stage)).items()} == {
            n: t.tobytes() for n, t in load_file(run.params(stage)).items()
        }
    assert again.names.read_bytes() == run.names.read_bytes()


def test_a_run_that_is_not_finished_or_does_not_fit_is_one_line(run, tmp_path):
    export_weights(run.path, tmp_path / "out")
    values = read_object(tmp_path / "out" / "config.json")
    values["recipe"]["decoder"]["width"] = 96
    (tmp_path / "out" / "config.json").write_text(json.dumps(values))
    assert "of another shape" in one_line(import_weights, str(tmp_path / "out"), tmp_path / "again")
    run.params("codec").unlink()
    with pytest.raises(FileNotFoundError, match="that stage is not finished"):
        export_weights(run.path, tmp_path / "out2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_damaged_tokenizer_is_not_handed_on(capsys, tmp_path):
    model_folder(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.model").write_bytes(TOKENIZER[:9])
    code, _, err = run_command(capsys, "import", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert code == 2 and err.count("\n") == 1
    assert "tokenizer.model is not a SentencePiece model" in err
    assert not (tmp_path / "out").exists()


def test_a_file_on_the_way_to_the_folder_is_told_before_the_work(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run_command(capsys, "import", "no/source", "--out", str(tmp_path / "file" / "deep" / "out"))
    assert (code, err) == (2, f"geminid: {tmp_path / 'file'}: is a file; give another --out\n")
