"""Hugging Face transformers' Qwen 3 on torch, with scaled_dot_product_attention."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.peers.contest import EPSILON, THETA, Shape
from benchmarks.peers.torch_gpt import best_of, contender, ready
from benchmarks.peers.worker import Contender, Spec


def model_of(shape: Shape, weights: dict[str, np.ndarray]) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=shape.num_ids,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.length,
        rms_norm_eps=EPSILON,
        tie_word_embeddings=True,
        use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config).train()
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)  # tied to the embedding
    return model


def make(spec: Spec, ids: np.ndarray) -> Contender:
    version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def made(how: str) -> Contender:
        network = ready(model_of(spec.shape, spec.weights).to(spec.device), how)
        return contender(spec, network, lambda net, x: net(input_ids=x, labels=x).loss, how, version)

    return best_of(spec, ids, made)
