"""Folders that transformers writes, through import and export, and into transformers again; the real 270M beside it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import sentencepiece

from geminid.corpus.fetch import default_cache
from geminid.interop.folder import read_folder
from geminid.interop.known import KNOWN
from geminid.interop.weights import export_weights, import_weights, load_model

torch = pytest.importorskip("torch", reason="parity beside transformers needs torch and transformers")
pytest.importorskip("transformers", reason="parity beside transformers needs torch and transformers")

from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration  # noqa: E402

from tests.interop import peers, small  # noqa: E402
from tests.interop.test_text_parity import rows  # noqa: E402
from tests.interop.test_towers_parity import interleaved, pictures  # noqa: E402

GEMMA = default_cache() / "models" / "gemma3-270m" / KNOWN["gemma3-270m"].file
PROMPTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "Der schnelle braune Fuchs springt über den faulen",
    "日本の首都は東京です。中国の首都は",
    "Столица России — Москва. Столица Украины —",
    "def add(a, b):\n    return a +",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_text_through_import_and_export_is_the_same_model_there(dtype, tmp_path):
    peers.text().to(dtype).save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "out")
    read = {"output_loading_info": True, "dtype": dtype, "attn_implementation": "eager"}
    theirs, _ = Gemma3ForCausalLM.from_pretrained(tmp_path / "theirs", **read)
    again, notes = Gemma3ForCausalLM.from_pretrained(tmp_path / "out", **read)
    assert not any(notes.values()), notes
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    ids, present = rows()
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(present.astype(np.int64))}
        assert torch.equal(again.eval()(**given).logits, theirs.eval()(**given).logits)


def test_pictures_and_text_through_import_and_export_are_the_same_model_there(tmp_path):
    theirs = peers.picture_text()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "out")
    again, notes = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes.values()), notes
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    ids, present = interleaved()
    expected = peers.read(theirs, ids, present, pictures(3))
    np.testing.assert_array_equal(peers.read(again.eval(), ids, present, pictures(3)), expected)


@pytest.mark.slow
@pytest.mark.skipif(not GEMMA.is_file(), reason="needs the 270M in the cache (`geminid import gemma3-270m --out DIR`)")
def test_the_real_270m_has_their_logits_on_their_own_reading_of_the_file(tmp_path):
    """Float32, the same quantised file read by both; five prompts, padded on the left. About 4 GB of memory."""
    import_weights(str(GEMMA), tmp_path / "ours")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ours" / "tokenizer.model"))
    lines = [[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in PROMPTS]
    longest = max(map(len, lines))
    ids = np.array([[0] * (longest - len(line)) + line for line in lines])
    present = np.arange(longest) >= np.array([[longest - len(line)] for line in lines])
    positions = np.broadcast_to(np.arange(longest), ids.shape)
    ours = load_model(tmp_path / "ours")
    got = np.asarray(jax.jit(small.text_logits)(ours, ids, present.astype(np.int32), positions))[present]
    theirs = Gemma3ForCausalLM.from_pretrained(
        GEMMA.parent, gguf_file=GEMMA.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    state = theirs.state_dict()
    assert all(np.array_equal(np.asarray(t), state[name].numpy()) for name, t in read_folder(tmp_path / "ours").items())
    expected = peers.text_logits(theirs, ids, present)[present]
    assert np.abs(got - expected).max() < 1e-3
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
