#!/usr/bin/env python3
"""Writes a checkpoint as a Hugging Face folder in f16 and as one GGUF file in Q8_0.

python3 training/export.py CHECKPOINT --hf FOLDER --gguf FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from checkpoint import read
from data import BOS, EOS, TOKENIZER
from model import Config, rope_factors


def name_of(weights: dict[str, torch.Tensor]) -> str:
    return f"minference-retrieval-{sum(w.numel() for w in weights.values()) / 1e6:.0f}m"


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, by Hugging Face name without `model.`."""
    return {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}


def write_hf(folder: Path, config: Config, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.loads(TOKENIZER.read_text())["model"]["vocab"]
    save_file(
        {f"model.{n}": w.half().contiguous() for n, w in weights.items()}, str(folder / "model.safetensors"), {"format": "pt"}
    )
    description = config.huggingface(vocab[BOS], vocab[EOS])
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
    generation = {"bos_token_id": vocab[BOS], "eos_token_id": vocab[EOS]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": config.context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
    shutil.copy(TOKENIZER, folder / "tokenizer.json")


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order that GGUF files of this architecture have: pairs (d, d + size / 2) next to each other."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path: Path, config: Config, weights: dict[str, torch.Tensor]) -> None:
    import gguf

    tokenizer = json.loads(TOKENIZER.read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    special = {t["content"] for t in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    path.parent.mkdir(parents=True, exist_ok=True)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name(name_of(weights))
    out.add_license("Apache-2.0")
    out.add_context_length(config.context)
    out.add_embedding_length(config.width)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.inner)
    out.add_head_count(config.heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_key_length(config.head_dim)
    out.add_value_length(config.head_dim)
    out.add_rope_dimension_count(config.head_dim)
    out.add_rope_freq_base(config.theta)
    out.add_layer_norm_rms_eps(config.eps)
    out.add_vocab_size(config.vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    merges = tokenizer["model"]["merges"]
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    out.add_bos_token_id(vocab[BOS])
    out.add_eos_token_id(vocab[EOS])
    out.add_add_bos_token(True)

    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in weights.items():
        part = name.removesuffix(".weight")
        prefix = ""
        if part.startswith("layers."):
            _, layer, part = part.split(".", 2)
            prefix = f"blk.{layer}."
        w = weight.float().numpy()
        if part.endswith("q_proj"):
            w = interleaved(w, config.heads)
        if part.endswith("k_proj"):
            w = interleaved(w, config.kv_heads)
        stored = f"{prefix}{names[part]}.weight"
        if w.ndim == 1:
            out.add_tensor(stored, w)
        else:
            q8 = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(stored, gguf.quantize(w, q8), raw_dtype=q8)
    out.add_tensor("rope_freqs.weight", rope_factors(config).float().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_card(path: Path, name: str, config: Config, meta: dict, rows: int, results: dict | None) -> None:
    """The model card, with the accuracies that `evaluate.py --out` wrote."""
    lines = [
        f"# {name}",
        "",
        f"A Llama of {config.layers} layers, width {config.width}, {config.heads} query heads and {config.kv_heads} KV heads of size",
        f"{config.head_dim}, with a vocabulary of {config.vocab:,} tokens, made to find facts in long texts. It shows what sparse attention",
        "keeps and loses; it knows nothing of the world and holds no conversation.",
        "",
        f"Trained from scratch on {meta['tokens']:,} tokens in {meta['step']:,} steps, in rows of up to {rows:,} tokens, by the recipe in",
        "[training](../../training/README.md): generated retrieval tasks, generated English, and Jane Austen's novels (public domain).",
        "Prompts as `minference eval` writes them suit it, others may not. Digits are tokens of their own; texts begin with `<|begin|>`;",
        "answers end with `<|end|>`.",
        "",
        "Licence: that of this repository.",
    ]
    if results:
        lengths = sorted({int(n) for task in results["tasks"].values() for n in task})
        lines += ["", "Share of answers that are right in all tokens, mean over depths (greedy, dense attention, bf16):", ""]
        lines += ["| task | " + " | ".join(f"{n:,}" for n in lengths) + " |", "| --- |" + " --- |" * len(lengths)]
        for task, rows in results["tasks"].items():
            cells = [f"{100 * np.mean(rows[str(n)]):.0f} %" if str(n) in rows else "" for n in lengths]
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
        lines += ["", f"Loss on held-out text (_Persuasion_, chapters 1 and 2): {results['text_loss']:.2f} nats a token."]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--hf", type=Path)
    p.add_argument("--gguf", type=Path)
    p.add_argument("--card", type=Path, help="model card to write")
    p.add_argument("--rows", type=int, default=131_072, help="longest rows of the training, for the card")
    p.add_argument("--results", type=Path, help="what evaluate.py wrote, for the card")
    args = p.parse_args()
    meta, tensors = read(args.checkpoint)
    config, weights = Config(**meta["config"]), weights_of(tensors)
    if args.hf:
        write_hf(args.hf, config, weights)
        print(f"{args.hf}: {sum(f.stat().st_size for f in args.hf.iterdir()):,} bytes")
    if args.gguf:
        write_gguf(args.gguf, config, weights)
        print(f"{args.gguf}: {args.gguf.stat().st_size:,} bytes")
    if args.card:
        write_card(args.card, name_of(weights), config, meta, args.rows, json.loads(args.results.read_text()) if args.results else None)


if __name__ == "__main__":
    main()
