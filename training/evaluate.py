#!/usr/bin/env python3
"""Accuracy on the tasks of `minference eval` by length and depth, and the loss on held-out text.

    python3 training/evaluate.py DIR --lengths 1024,8192,32768 --samples 20

An answer counts when all its tokens are the most likely ones, which is what greedy decoding would give; one forward pass over
the prompt with its answer decides it. DIR is a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from data import HELD_OUT, Corpus
from model import Config, Llama, half_precision

TASKS = ("passkey", "needle", "kv", "variables")


@torch.no_grad()
def answer(model: Llama, prompt: list[int], expected: list[int]) -> tuple[bool, float]:
    """Whether greedy decoding gives the expected tokens, and the share of them that are the most likely ones."""
    device = model.embed_tokens.weight.device
    ids = torch.tensor([prompt + expected[:-1]], device=device)
    with half_precision(device.type):
        hidden = model.hidden(ids, torch.arange(ids.shape[1], device=device)[None])[0, -len(expected) :]
        best = (hidden @ model.embed_tokens.weight.T.to(hidden.dtype)).argmax(-1)
    right = best == torch.tensor(expected, device=device)
    return bool(right.all()), float(right.float().mean())


def accuracy(
    model: Llama, corpus: Corpus, task: str, length: int, depth: float, samples: int, seed: int, filler: str
) -> tuple[float, float]:
    results = []
    for i in range(samples):
        rng = np.random.default_rng([seed, TASKS.index(task), length, round(1000 * depth), i])
        results.append(answer(model, *corpus.problem(task, rng, length, depth, filler)))
    whole, tokens = zip(*results)
    return sum(whole) / samples, sum(tokens) / samples


def eager(model: Llama) -> None:
    """Drops compiled code, and kernels that prepare for each length anew."""
    for block in model.layers:
        block._compiled_call_impl = None
    if torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(True)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_math_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(False)


def quick(model: Llama, length: int, samples: int, seconds: float) -> dict[str, float]:
    """Accuracies at one length, over all depths, as far as the time allows."""
    corpus, begin, out = Corpus(pool_sentences=3000, held_out=True), time.time(), {}
    eager(model)
    for task in TASKS:
        if time.time() - begin > seconds:
            break
        depths = [(i + 0.5) / samples for i in range(samples)]
        out[task] = round(float(np.mean([accuracy(model, corpus, task, length, d, 1, 7, "story")[0] for d in depths])), 3)
    return out


@torch.no_grad()
def text_loss(model: Llama, corpus: Corpus, length: int) -> float:
    """Mean loss of the tokens of the held-out text, read in pieces of a length."""
    device = model.embed_tokens.weight.device
    ids = corpus.encode(HELD_OUT.read_text())
    total, count = 0.0, 0
    for at in range(0, len(ids) - 1, length):
        piece = torch.tensor([[corpus.bos, *ids[at : at + length]]], device=device)
        with half_precision(device.type):
            logits = model.logits(piece[:, :-1])[0].float()
        total += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
        count += piece.shape[1] - 1
    return total / count


def main() -> None:
    from checkpoint import load

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--tasks", default=",".join(TASKS))
    p.add_argument("--lengths", default="1024,4096,16384,32768,65536,131072")
    p.add_argument("--depths", type=int, default=5)
    p.add_argument("--samples", type=int, default=10, help="problems at each depth")
    p.add_argument("--filler", default="story", choices=["story", "novels", "english", "noise"])
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--out", type=Path, help="JSON file")
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = Config(**json.loads((args.folder / "state.json").read_text())["config"])
    model = Llama(config).to(device)
    load(args.folder, model)
    eager(model)
    corpus = Corpus(pool_sentences=6000, held_out=True)
    results: dict = {"text_loss": round(text_loss(model, corpus, 2048), 4), "filler": args.filler, "tasks": {}}
    print(f"loss on held-out text {results['text_loss']:.3f}")
    for task in args.tasks.split(","):
        for length in map(int, args.lengths.split(",")):
            depths = [0.5] if task == "variables" else [i / max(1, args.depths - 1) for i in range(args.depths)]
            samples = args.samples * (args.depths if task == "variables" else 1)
            row = [accuracy(model, corpus, task, length, d, samples, args.seed, args.filler) for d in depths]
            results["tasks"].setdefault(task, {})[length] = [round(whole, 3) for whole, _ in row]
            print(
                f"{task:10} {length:7,}  {100 * np.mean([r[0] for r in row]):5.1f} %  by depth: "
                + " ".join(f"{100 * whole:3.0f}" for whole, _ in row)
                + f"   tokens {100 * np.mean([r[1] for r in row]):5.1f} %",
                flush=True,
            )
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
