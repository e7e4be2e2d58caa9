"""GGUF files that the `gguf` package writes as llama.cpp's converter does: weights, config, tokenizer, broken ones."""

from __future__ import annotations

import io
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from geminid.interop.folder import read_folder
from geminid.interop.gguf_file import NAMES, GgufFile
from geminid.interop.pieces import sentencepiece_model
from geminid.interop.table import paired
from geminid.interop.text import TEXT, text_config
from geminid.interop.weights import import_weights, load_model
from geminid.model.decoder import Decoder
from geminid.train.params import named, params_of
from tests.helpers import filled

pytestmark = pytest.mark.usefixtures("quick_compiles")
WORDS = ["the cat sat on the mat", "der Hund  lief", "наш дом", "a\n\nb\tc", "x = 10", "日本語"]
TEXTS = [*WORDS, " ", "  ", "\n", "<table>", "<start_of_turn>"]
WIDTH, LAYERS, PIECES = 32, 7, 420


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A SentencePiece model with Gemma's settings: merges, bytes, runs of spaces and lines as user-defined pieces."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=buffer,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["▁▁", "▁▁▁", "\n", "\n\n", "\t", "<table>"],
        control_symbols=["<start_of_turn>"],
        num_threads=1,
        minloglevel=2,
    )
    return buffer.getvalue()


def write_gguf(path: Path, pieces: bytes, **changes) -> dict[str, np.ndarray]:
    """A small file: matrices Q8_0, norms float32 as 1 + weight -> the weights, under the released names."""
    model = sentencepiece_model_pb2.ModelProto.FromString(pieces)
    values = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    values |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(model.pieces)}
    config, num_ids = text_config(values)
    decoder = filled(lambda: Decoder(config, num_ids, rngs=nnx.Rngs(0)), 0.3, 1)
    params = named(params_of(decoder))
    weights = {
        name: part
        for row, _, names in paired(TEXT, params)
        for name, part in zip(names, row.to_theirs(np.asarray(params[row.ours])), strict=True)
    }
    writer = gguf.GGUFWriter(path, changes.get("architecture", "gemma3"))
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(8)
    writer.add_rope_freq_base(1e6)
    for name, value in changes.get("fields", {}).items():
        writer.add_uint32(name, value)
    writer.add_tokenizer_model(changes.get("tokenizer", "llama"))
    writer.add_token_list([p.piece.replace("▁", " ") if p.type == 4 else p.piece for p in model.pieces])
    writer.add_token_scores([p.score for p in model.pieces])
    writer.add_token_types([3 if p.type == 2 else p.type for p in model.pieces])
    for add, number in (
        (writer.add_pad_token_id, 0),
        (writer.add_eos_token_id, 1),
        (writer.add_bos_token_id, 2),
        (writer.add_unk_token_id, 3),
    ):
        add(number)
    writer.add_add_space_prefix(False)
    theirs = {f"model.{theirs}.weight": ours for ours, theirs in NAMES.items()}
    for name, weight in weights.items():
        layer = next((part for part in name.split(".") if part.isdigit()), None)
        stem = theirs[name if layer is None else name.replace(f".{layer}.", ".{}.")]
        kept = weight + 1 if weight.ndim == 1 else weight
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{stem.format(layer)}.weight", quantize(kept, kind), raw_dtype=kind)
    for name in changes.get("tensors", ()):
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_are_dequantised_and_norms_lose_their_one(pieces, tmp_path):
    weights = write_gguf(tmp_path / "m.gguf", pieces)
    import_weights(str(tmp_path / "m.gguf"), tmp_path / "out")
    decoder = load_model(tmp_path / "out")
    assert decoder.config.local_per_global == 5
    assert (decoder.config.window, decoder.config.rope_theta, decoder.config.local_rope_theta) == (8, 1e6, 1e4)
    assert decoder.config.norm_epsilon == 1e-6
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in read_folder(tmp_path / "out").items():
        weight = weights[name]
        expected = (weight + 1) - np.float32(1) if weight.ndim == 1 else dequantize(quantize(weight, kind), kind)
        np.testing.assert_array_equal(np.asarray(tensor), expected)
        assert np.abs(np.asarray(tensor) - weight).max() < 0.02


@pytest.fixture(scope="module")
def rebuilt(pieces, tmp_path_factory):
    """The tokenizer out of a GGUF file, and the one that went in."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, pieces)
    again = sentencepiece.SentencePieceProcessor(model_proto=GgufFile(path).tokenizer())
    return again, sentencepiece.SentencePieceProcessor(model_proto=pieces)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.sampled_from([*WORDS, " ", "  ", "\n", "<table>", "<start_of_turn>"]), st.text(max_size=5)))
)
def test_the_rebuilt_tokenizer_is_the_original(rebuilt, parts):
    again, original = rebuilt
    text = "".join(parts)
    ids = original.encode(text)
    assert again.encode(text) == ids
    assert again.decode(ids) == original.decode(ids)


def test_special_ids_are_kept(rebuilt):
    again, original = rebuilt
    for name in ("pad_id", "eos_id", "bos_id", "unk_id"):
        assert getattr(again, name)() == getattr(original, name)()
    assert all(again.is_control(i) == original.is_control(i) for i in range(original.get_piece_size()))


def test_pieces_that_are_no_tokenizer_are_one_line():
    ids = {"unknown": 0, "bos": None, "eos": None, "padding": None}
    with pytest.raises(ValueError, match=r"^the pieces make no tokenizer \([^\n]*\)$"):
        sentencepiece_model(["<unk>", "a", "a"], [0.0, -1.0, -2.0], [2, 1, 1], ids, add_space=False)


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architecture": "llama"}, "holds a model of the architecture 'llama'; gemma3 is read"),
        ({"fields": {"gemma3.expert_count": 4}}, "has fields that are not known: gemma3.expert_count"),
        ({"tensors": ["output.weight"]}, "holds a tensor that Gemma 3's text model does not have: output.weight"),
        ({"tensors": ["blk.9.ffn_gate_exps.weight"]}, "does not have: blk.9.ffn_gate_exps.weight"),
        ({"tensors": ["blk.7.attn_q.weight"]}, "tensors not known: model.layers.7.self_attn.q_proj.weight"),
        ({"tokenizer": "gpt2"}, "has a tokenizer of the kind 'gpt2'"),
    ],
)
def test_what_is_not_gemma_3_is_one_line(changes, line, pieces, tmp_path):
    write_gguf(tmp_path / "m.gguf", pieces, **changes)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as found:
        import_weights(str(tmp_path / "m.gguf"), tmp_path / "out")
    assert line in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(pieces, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, pieces)
    return path.read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_one_line(whole, tmp_path, share):
    (tmp_path / "m.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"^[^\n]*is not a whole GGUF file \([^\n]*\); fetch it again$"):
        GgufFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04", b"GGUF" + bytes(64), b"GGUF\x09" + bytes(64)])
def test_a_file_that_is_no_gguf_is_one_line(content, tmp_path):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*m\.gguf [^\n]*$"):
        GgufFile(tmp_path / "m.gguf")
