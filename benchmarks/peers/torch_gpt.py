"""A GPT in plain torch, as nanoGPT has it: fused projections, scaled_dot_product_attention, fused AdamW, torch.compile.

Axis letters: see `contest`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.contest import EPSILON, SQUARE, THETA, Shape, Update, decays
from benchmarks.peers.worker import Contender, Spec, fastest

IGNORED = -100  # the target of a row's last position
HOW = {"cpu": ("eager", "torch.compile"), "cuda": ("eager", "torch.compile", "torch.compile, cuDNN attention")}


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.split = [heads, kv, kv]
        self.norm_attention = nn.RMSNorm(shape.width, EPSILON)
        self.qkv_proj = nn.Linear(shape.width, heads + 2 * kv, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, EPSILON)
        self.k_norm = nn.RMSNorm(shape.head_dim, EPSILON)
        self.o_proj = nn.Linear(heads, shape.width, bias=False)
        self.norm_mlp = nn.RMSNorm(shape.width, EPSILON)
        self.gate_up_proj = nn.Linear(shape.width, 2 * shape.mlp_width, bias=False)
        self.down_proj = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B T D] -> the same."""
        rows, length, _ = x.shape
        q, k, v = (
            part.view(rows, length, -1, self.shape.head_dim).transpose(1, 2)
            for part in self.qkv_proj(self.norm_attention(x)).split(self.split, -1)
        )
        q, k = rotated(self.q_norm(q), cos, sin), rotated(self.k_norm(k), cos, sin)
        grouped = self.shape.num_kv_heads != self.shape.num_heads
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        gate, up = self.gate_up_proj(self.norm_mlp(x)).chunk(2, -1)
        return x + self.down_proj(F.silu(gate) * up)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class GPT(nn.Module):
    """(ids int [B T], targets int [B T]) -> mean cross-entropy.

    dtype: of what goes from layer to layer; autocast alone leaves it in float32, and each layer reads and writes it.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(shape.num_ids, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.width, EPSILON)
        half = shape.head_dim // 2
        angle = torch.outer(torch.arange(shape.length), THETA ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(ids).to(self.dtype)
        for layer in self.layers:
            x = layer(x, self.cos.to(x.dtype), self.sin.to(x.dtype))
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1), ignore_index=IGNORED)


def converted(weights: dict[str, np.ndarray], shape: Shape) -> dict[str, Tensor]:
    """Qwen 3's names -> ours, projections joined."""
    state = {"embedding.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    for i in range(shape.num_layers):

        def of(*names: str, i: int = i) -> np.ndarray:
            return np.concatenate([weights[f"model.layers.{i}.{name}.weight"] for name in names])

        layer = {
            "norm_attention": of("input_layernorm"),
            "qkv_proj": of("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "q_norm": of("self_attn.q_norm"),
            "k_norm": of("self_attn.k_norm"),
            "o_proj": of("self_attn.o_proj"),
            "norm_mlp": of("post_attention_layernorm"),
            "gate_up_proj": of("mlp.gate_proj", "mlp.up_proj"),
            "down_proj": of("mlp.down_proj"),
        }
        state |= {f"layers.{i}.{name}.weight": value for name, value in layer.items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def targets_of(ids: Tensor) -> Tensor:
    return F.pad(ids[:, 1:], (0, 1), value=IGNORED)


def optimiser_of(model: nn.Module, update: Update) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": update.weight_decay},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    betas = (update.beta1, update.beta2)
    return torch.optim.AdamW(groups, lr=update.learning_rate, betas=betas, eps=update.epsilon, fused=True)


def contender(
    spec: Spec, model: nn.Module, loss_of: Callable[[nn.Module, Tensor], Tensor], setting: str, version: str
) -> Contender:
    """Forward, backward, clipping and AdamW of any torch model. loss_of(model, ids int64 [B T]) -> mean loss.

    In bfloat16 the products are, under autocast, and the parameters stay in float32.
    """
    optimiser = optimiser_of(model, spec.update)
    reduced = spec.dtype != "float32"

    def step(ids: np.ndarray) -> Tensor:
        x = torch.from_numpy(ids).long().to(spec.device)
        with torch.autocast(spec.device, getattr(torch, spec.dtype), enabled=reduced):
            loss = loss_of(model, x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.update.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def wait() -> None:
        if spec.device == "cuda":
            torch.cuda.synchronize()

    square = torch.full((SQUARE, SQUARE), 1 / SQUARE, dtype=getattr(torch, spec.dtype), device=spec.device)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square)
        wait()

    return Contender(step, wait, products, setting, version)


def best_of(spec: Spec, ids: np.ndarray, make: Callable[[str], Contender]) -> Contender:
    """Eager, or compiled, or on a GPU compiled with cuDNN's attention: whichever is fastest here."""
    if spec.device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return make(fastest({name: lambda name=name: make(name) for name in HOW[spec.device]}, ids))


def ready(model: nn.Module, how: str) -> Any:
    torch.compiler.reset()
    torch.backends.cuda.enable_flash_sdp("cuDNN" not in how)
    torch.backends.cuda.enable_mem_efficient_sdp("cuDNN" not in how)
    return torch.compile(model) if how.startswith("torch.compile") else model


def make(spec: Spec, ids: np.ndarray) -> Contender:
    def made(how: str) -> Contender:
        model = GPT(spec.shape, getattr(torch, spec.dtype))
        model.load_state_dict(converted(spec.weights, spec.shape))
        network = ready(model.to(spec.device), how)
        return contender(spec, network, lambda net, x: net(x, targets_of(x)), how, f"torch {torch.__version__}")

    return best_of(spec, ids, made)
