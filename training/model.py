"""A Llama: RMS norm, rotary positions (half-split), grouped-query attention, SwiGLU, tied embeddings.

Only the pairs of dimensions that turn at least once in some hundred tokens carry positions; the slower ones would meet, in a
text longer than those of the training, angles that they have never seen. Llama 3's scaling with a huge factor stops them (as
p-RoPE does, arXiv 2410.06205), so what a head looks for does not depend on how far away it is.

Parameters carry the names of Hugging Face's Llama, so the state is what `export.py` writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


#: What the frequencies of pairs that stand still are divided by.
STILL = float(2**24)


@dataclass(frozen=True)
class Config:
    layers: int = 8
    width: int = 384
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    inner: int = 1024
    vocab: int = 4096
    context: int = 131_072
    theta: float = 1e5
    #: Pairs that turn once in more tokens than this stand still; those that turn four times are as they are.
    turn: int = 256
    eps: float = 1e-5

    def huggingface(self, bos: int, eos: int) -> dict:
        """`config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": STILL,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": self.turn,
            },
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "torch_dtype": "float16",
        }

    def train_flops(self, length: int) -> float:
        """Floating-point operations of a training step per token, forward and backward, causal attention counted as half."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = self.layers * (2 * self.width * (q + kv) + 3 * self.width * self.inner) + self.vocab * self.width
        return 6 * matrices + self.layers * 6 * q * length


def rope_factors(c: Config) -> Tensor:
    """What the frequency of each pair is divided by, [D / 2], as Llama 3's scaling has it."""
    own = c.theta ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    smooth = ((c.turn * own / (2 * math.pi) - 1) / 3).clamp(0, 1)
    return 1 / ((1 - smooth) / STILL + smooth)


SIZES = {
    "base": Config(),
    "small": Config(layers=4, width=256, heads=4, kv_heads=2, inner=512),
    "tiny": Config(layers=4, width=128, heads=2, kv_heads=1, inner=256),
}


class Norm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs element d with d + size / 2. x [B, H, N, D]; cos, sin [B, 1, N, D / 2] in float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.c.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), cos, sin)
        k = rotate(heads(self.k_proj(x)), cos, sin)
        y = F.scaled_dot_product_attention(q, k, heads(self.v_proj(x)), is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.width, c.inner, bias=False)
        self.up_proj = nn.Linear(c.width, c.inner, bias=False)
        self.down_proj = nn.Linear(c.inner, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = Norm(c.width, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.width, c.eps)
        self.mlp = Mlp(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.width)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = Norm(c.width, c.eps)
        frequencies = c.theta ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim) / rope_factors(c)
        self.register_buffer("frequencies", frequencies, persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * c.layers) ** 0.5 if deep else 0.02)

    def hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Final hidden states [B, N, width] of tokens [B, N] at positions [B, N]."""
        angles = positions[:, None, :, None].double() * self.frequencies
        cos, sin = angles.cos().float(), angles.sin().float()
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x, cos, sin)
        return self.norm(x)

    def logits(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return F.linear(self.hidden(ids, positions), self.embed_tokens.weight)


def half_precision(device: str) -> torch.autocast:
    """Products in bf16 where the device multiplies it fast."""
    fast = device == "cuda" or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.autocast(device, torch.bfloat16, enabled=fast)


def losses(x: Tensor, head: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Of hidden states: [sum of text losses, their number, sum of answer losses, their number, right answer tokens]."""
    logits = F.linear(x, head).flatten(0, 1).float()
    targets, classes = targets.flatten(), classes.flatten()
    each = F.cross_entropy(logits, targets, reduction="none")
    text, answer = (classes == 1).float(), (classes == 2).float()
    right = (logits.detach().argmax(-1) == targets).float() * answer
    return torch.stack([(each * text).sum(), text.sum(), (each * answer).sum(), answer.sum(), right.sum()])
