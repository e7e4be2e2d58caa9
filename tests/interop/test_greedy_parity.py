"""The real 270M writes what transformers writes: 64 greedy ids after each of 20 prompts in 11 languages, float32."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece

from geminid.corpus.fetch import default_cache
from geminid.interop.known import KNOWN
from geminid.interop.weights import import_weights, load_model
from geminid.model.stored import Bits, prepared
from geminid.serve.engine import Engine, Options

torch = pytest.importorskip("torch", reason="parity beside transformers needs torch and transformers")
pytest.importorskip("transformers", reason="parity beside transformers needs torch and transformers")

from transformers import Gemma3ForCausalLM  # noqa: E402

GEMMA = default_cache() / "models" / "gemma3-270m" / KNOWN["gemma3-270m"].file
NEW = 64
PROMPTS = [
    "The tallest mountain on Earth is",
    "Once upon a time, a fox and a crow",
    "La capitale de la France est",
    "Pour faire une bonne soupe à l'oignon, il faut d'abord",
    "Der schnelle braune Fuchs springt über",
    "Im Jahr 1989 fiel in Berlin",
    "El río más largo de América del Sur es",
    "Ayer por la tarde fuimos al mercado y",
    "Столица России — Москва. Столица Украины —",
    "Жили-были старик со старухой, и было у них",
    "日本の首都は東京です。中国の首都は",
    "昔々、あるところに、",
    "中国最长的河流是",
    "春天来了,公园里的花",
    "대한민국의 수도는",
    "옛날 옛적에 호랑이가",
    "عاصمة مصر هي",
    "في يوم من الأيام كان هناك",
    "भारत की राजधानी",
    "O gato subiu no telhado porque",
]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not GEMMA.is_file(), reason="needs the 270M in the cache (`geminid import gemma3-270m --out DIR`)")
def test_twenty_prompts_go_on_with_the_same_64_ids(tmp_path):
    """transformers dequantises the GGUF file by itself and writes one prompt at a time; ours writes all at once."""
    import_weights(str(GEMMA), tmp_path / "ours")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ours" / "tokenizer.model"))
    prompts = [[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in PROMPTS]
    decoder = load_model(tmp_path / "ours")
    num_ids, eos = decoder.embedding.shape[0], tokenizer.eos_id()
    engine = Engine(prepared(decoder, Bits.all(None), len(prompts)), num_ids, stops=[eos])
    del decoder
    got = engine.answer(prompts, [Options(max_new=NEW)] * len(prompts))
    theirs = Gemma3ForCausalLM.from_pretrained(GEMMA.parent, gguf_file=GEMMA.name, dtype=torch.float32).eval()
    for text, prompt, answer in zip(PROMPTS, prompts, got, strict=True):
        ids = torch.tensor([prompt])
        written = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
        expected = written[0, len(prompt) :].numpy()
        expected = expected[: np.append(np.flatnonzero(expected == eos), NEW)[0]].tolist()
        assert answer == expected, text
        assert len(expected) > 8, text  # it says something
