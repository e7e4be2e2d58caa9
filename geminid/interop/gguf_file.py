"""Gemma 3 text models from GGUF files: weights made float32, config.json from the metadata, the tokenizer rebuilt.

The file says neither which layers are local nor their RoPE base nor the query scalar: llama.cpp's code does, and so
does this one (five local layers, then a global one; 10,000; the head size, but 168 in the 27B model of 62 layers).
Norms are kept as 1 + weight there; the layouts are otherwise Hugging Face's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from geminid.interop.folder import Tensor
from geminid.interop.pieces import sentencepiece_model
from geminid.interop.table import listed
from geminid.interop.text import text_config, text_values

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "blk.{}.attn_norm": "layers.{}.input_layernorm",
    "blk.{}.attn_q": "layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "layers.{}.self_attn.k_norm",
    "blk.{}.post_attention_norm": "layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "layers.{}.pre_feedforward_layernorm",
    "blk.{}.ffn_gate": "layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "layers.{}.mlp.down_proj",
    "blk.{}.post_ffw_norm": "layers.{}.post_feedforward_layernorm",
}
VALUES = {  # under `gemma3.`; the same meaning in config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
OPTIONAL = {"context_length": "max_position_embeddings", "final_logit_softcapping": "final_logit_softcapping"}
LAYERS_27B, QUERY_SCALAR_27B = 62, 168
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}


class Reader(gguf.GGUFReader):
    """The package's reader, but an end before its time is an error where it shows, not an empty array."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        array = super()._get(offset, dtype, count, override_order)
        if len(array) != int(count):
            raise ValueError(f"it ends before byte {offset + int(count) * array.itemsize:,}")
        return array


class GgufFile:
    """One file: `config`, `tensors` under the released names, `tokenizer` (a SentencePiece model), `chat_template`."""

    def __init__(self, path: Path):
        """ValueError, one line, for a file that is not whole, not Gemma 3's, or has what our decoder does not."""
        try:
            self._reader = Reader(path)
            self._fields = dict(self._reader.fields)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"{path} is not a whole GGUF file ({str(error)[:120]}); fetch it again") from None
        self.path = path
        if self._reader.byte_order != "I":
            raise ValueError(f"{path} has the other byte order than this machine; convert it there")
        if (kind := self._get("general.architecture")) != "gemma3":
            raise ValueError(f"{path} holds a model of the architecture {kind!r}; gemma3 is read")
        self.tensors = {self._name(tensor.name): _lazy(tensor, path) for tensor in self._reader.tensors}
        self.config = self._config()

    def _get(self, name: str) -> Any:
        """A value of the metadata; None where there is none."""
        field = self._fields.get(name)
        return None if field is None else field.contents()

    def _name(self, name: str) -> str:
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        stem = name if layer is None else f"blk.{{}}.{layer[2]}"
        theirs = NAMES.get(stem.removesuffix(".weight")) if stem.endswith(".weight") else None
        if theirs is None:
            raise ValueError(f"{self.path} holds a tensor that Gemma 3's text model does not have: {name}")
        return "model." + theirs.format(layer[1] if layer else "") + ".weight"

    def _config(self) -> dict[str, Any]:
        """config.json."""
        found = {name.removeprefix("gemma3."): self._get(name) for name in self._fields if name.startswith("gemma3.")}
        lacking = VALUES.keys() - found.keys()
        if lacking:
            raise ValueError(f"{self.path} does not say: {listed('gemma3.' + name for name in lacking)}")
        values: dict[str, Any] = {VALUES[name]: _shortest(found.pop(name)) for name in VALUES}
        others = {theirs: _shortest(found.pop(name)) for name, theirs in OPTIONAL.items() if name in found}
        if found.pop("attention.value_length", values["head_dim"]) != values["head_dim"]:
            raise ValueError(f"{self.path} has keys and values of different sizes, which Gemma 3 has not")
        scaling, factor = found.pop("rope.scaling.type", None), found.pop("rope.scaling.factor", 1.0)
        values["rope_scaling"] = {"rope_type": scaling, "factor": _shortest(factor)} if scaling else None
        values["rope_local_base_freq"] = _shortest(found.pop("rope.freq_base_swa", 10_000.0))
        if found:
            raise ValueError(f"{self.path} has fields that are not known: {listed('gemma3.' + name for name in found)}")
        big = values["num_hidden_layers"] == LAYERS_27B
        values["query_pre_attn_scalar"] = QUERY_SCALAR_27B if big else values["head_dim"]
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ValueError(f"{self.path} holds no embedding (token_embd.weight); fetch it again")
        values["vocab_size"] = embedding.shape[0]
        written = text_values(
            *text_config(values | {"final_logit_softcapping": others.pop("final_logit_softcapping", None)})
        )
        ids = {theirs: self._get(f"tokenizer.ggml.{name}") for name, theirs in IDS.items()}
        return {"architectures": ["Gemma3ForCausalLM"], **written, **others, **ids, "dtype": "float32"}

    def tokenizer(self) -> bytes:
        """The SentencePiece model. ValueError where the file holds another kind of tokenizer."""
        names = ("model", "tokens", "scores", "token_type")
        kind, pieces, scores, kinds = (self._get(f"tokenizer.ggml.{name}") for name in names)
        if kind != "llama" or not pieces or not len(pieces) == len(scores or ()) == len(kinds or ()):
            raise ValueError(f"{self.path} has a tokenizer of the kind {kind!r}; SentencePiece ('llama') is read")
        return sentencepiece_model(
            pieces,
            scores,
            kinds,
            {name: self._get(f"tokenizer.ggml.{name}_token_id") for name in ("unknown", "bos", "eos", "padding")},
            add_space=bool(self._get("tokenizer.ggml.add_space_prefix") is not False),
        )

    @property
    def chat_template(self) -> str | None:
        return self._get("tokenizer.chat_template")


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that gives it again: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _lazy(tensor: gguf.ReaderTensor, path: Path) -> Tensor:
    is_norm = tensor.name.endswith("norm.weight")

    def load() -> np.ndarray:
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(f"{path}: tensor {tensor.name} is of type {tensor.tensor_type.name}, not read") from None
        return array - np.float32(1) if is_norm else array

    return Tensor(tuple(tensor.shape.tolist()[::-1]), np.dtype(np.float32), load)
