"""Small random towers made with transformers: what the parity tests and the fixtures' script share.

Import it only where torch and transformers are installed.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3nAudioConfig,
    Gemma3nAudioEncoder,
    Gemma3TextConfig,
)

PICTURE_ID = 60  # of 64 ids
WINDOW = 6  # positions a local layer sees: less than one picture of the tests


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter random: transformers makes norms, biases and the projection trivial, and they must be tested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.round_().add_(noise * 0.3)  # rounded: some biases begin as noise of 1e-6 without a seed
    return model.eval()


def audio_encoder(**changes: object) -> Gemma3nAudioEncoder:
    """Two Conformer blocks of width 16 on 10 mels."""
    values = {
        "input_feat_size": 10,
        "hidden_size": 16,
        "conf_num_attention_heads": 2,
        "conf_num_hidden_layers": 2,
        "sscp_conv_channel_size": (6, 4),
    }
    return randomised(Gemma3nAudioEncoder(Gemma3nAudioConfig(**{**values, **changes})), 1)


def hear(encoder: Gemma3nAudioEncoder, mels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft tokens [B n D] and their validity bool [B n]; theirs says where the padding is."""
    with torch.no_grad():
        heard = encoder(torch.tensor(mels), torch.tensor(~valid))
    return heard.last_hidden_state.numpy(), ~heard.audio_mel_mask.numpy()


def text(**changes: object) -> Gemma3ForCausalLM:
    """Gemma 3's text model: five layers of width 16, every third global, a window of six positions."""
    values = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 12,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "attn_implementation": "eager",
    }
    return randomised(Gemma3ForCausalLM(Gemma3TextConfig(**{**values, **changes})), 4)


def text_logits(model: Gemma3ForCausalLM, ids: np.ndarray, present: np.ndarray) -> np.ndarray:
    """[B T V]; positions count from each row's beginning, padding included."""
    positions = torch.arange(ids.shape[1])[None].expand(ids.shape)
    mask = torch.tensor(present.astype(np.int64))
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=mask, position_ids=positions).logits.numpy()


def text_gradients(model: Gemma3ForCausalLM, ids: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of each present id after present ones."""
    positions = torch.arange(ids.shape[1])[None].expand(ids.shape)
    mask = torch.tensor(present.astype(np.int64))
    logits = model(input_ids=torch.tensor(ids), attention_mask=mask, position_ids=positions).logits[:, :-1]
    labels = torch.tensor(np.where(present[:, :-1] & present[:, 1:], ids[:, 1:], -100))
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def picture_text(local_per_global: int = 1, window: int = WINDOW, **changes: object) -> Gemma3ForConditionalGeneration:
    """Gemma 3 with four layers of width 16 and pictures of 40 pixels: 64 patches, 16 soft tokens."""
    kinds = ["full_attention" if (i + 1) % (local_per_global + 1) == 0 else "sliding_attention" for i in range(4)]
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": window,
        "layer_types": kinds,
    }
    vision = {
        "image_size": 40,
        "patch_size": 5,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vision_use_head": False,
    }
    values = {"mm_tokens_per_image": 16, "image_token_id": PICTURE_ID, **changes}
    return randomised(Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **values)), 2)


def read(
    model: Gemma3ForConditionalGeneration, ids: np.ndarray, present: np.ndarray, pictures: np.ndarray
) -> np.ndarray:
    """Logits [B T V]; pictures [P H W 3]."""
    is_picture = ids == model.config.image_token_id
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(pictures.transpose(0, 3, 1, 2)),
            attention_mask=torch.tensor(present.astype(np.int64)),
            token_type_ids=torch.tensor(is_picture.astype(np.int64)),
        ).logits.numpy()


def see(model: Gemma3ForConditionalGeneration, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States of patches [P grid^2 D] and soft tokens [P n D]; pictures [P H W 3]."""
    with torch.no_grad():
        seen = model.get_image_features(torch.tensor(pictures.transpose(0, 3, 1, 2)))
    return seen.last_hidden_state.numpy(), seen.pooler_output.numpy()


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors of `save_pretrained`'s file, tied ones once."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
