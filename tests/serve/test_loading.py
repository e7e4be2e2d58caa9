"""From a folder to a conversation: a small model with a real SentencePiece tokenizer; and what is not one."""

from __future__ import annotations

import io
import shutil

import pytest
import sentencepiece
from flax import nnx

from geminid.cli import main
from geminid.config import DecoderConfig
from geminid.interop.folder import write_folder
from geminid.interop.table import export_module
from geminid.interop.text import TEXT, text_values
from geminid.model.decoder import Decoder
from geminid.serve.chat import END_OF_TURN, TURN
from geminid.serve.engine import Options
from geminid.serve.loading import open_chat
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = DecoderConfig(
    num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_width=64, window=8, local_per_global=1,
    post_norm=True, query_scalar=16.0, rope_theta=1e6,
)  # fmt: skip


def tokenizer() -> bytes:
    """Bytes and a few letters; ids of Gemma's marks."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sat on the mat", "the hat and the bat"] * 20), model_writer=made, vocab_size=300,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=[TURN, END_OF_TURN], add_dummy_prefix=False, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    pieces = tokenizer()
    num_ids = sentencepiece.SentencePieceProcessor(model_proto=pieces).get_piece_size()
    decoder = filled(lambda: Decoder(CONFIG, num_ids, rngs=nnx.Rngs(0)), 0.4, seed=1)
    values = text_values(CONFIG, num_ids)
    write_folder(path, values, export_module(decoder, TEXT), others={"tokenizer.model": pieces})
    return path


def test_the_same_words_are_streamed_in_float32_as_the_engine_chooses(folder):
    chat = open_chat(folder, None, Options(max_new=12), turns=True)
    said = "".join(chat.say("the cat"))
    prompt = chat.pieces.conversation([("user", "the cat")])
    [ids] = chat.engine.answer([prompt], [Options(max_new=12)])
    assert said == chat.pieces.processor.decode(ids)
    assert chat.engine.stops.tolist() == [1, chat.pieces.special(END_OF_TURN)]


@pytest.mark.parametrize(
    "name, content, in_turns",
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"bos_token": "<bos>"}', False),
        ("NOTICE.md", "a base model", False),
    ],
)
def test_a_base_model_goes_on_from_the_text(folder, tmp_path, name, content, in_turns):
    """Gemma's base and tuned models have the same pieces; only the tuned ones come with a template."""
    here = tmp_path / "model"
    shutil.copytree(folder, here)
    (here / name).write_text(content)
    chat = open_chat(here, None, Options(max_new=3))
    asked = chat.pieces.conversation([("user", "the cat")]) if in_turns else chat.pieces.continued("the cat")
    assert chat.prompt("the cat") == asked


def test_a_chat_in_the_terminal(folder, capsys, monkeypatch):
    lines = iter(["the cat", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    main(["chat", "--model", str(folder), "--max-new", "5", "--bits", "4"])
    assert capsys.readouterr().out.endswith("\n")


def test_a_folder_that_cannot_talk_is_one_line(folder, tmp_path, capsys):
    def line(*arguments: str) -> str:
        with pytest.raises(SystemExit) as leaving:
            main(["chat", *arguments])
        assert leaving.value.code == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    assert "no such folder" in line("--model", str(tmp_path / "none"))
    assert "no tokenizer here" in line("--model", str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"not one")
    assert "is not a SentencePiece model" in line("--model", str(tmp_path))
    assert "weights of 3 bits" in line("--model", str(folder), "--bits", "3")
    assert "temperature is -1.0" in line("--model", str(folder), "--temperature", "-1")
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    assert "config.json" in line("--model", str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is not JSON" in line("--model", str(tmp_path))
