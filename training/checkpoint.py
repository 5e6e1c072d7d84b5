"""Checkpoints in pieces of at most 15 MiB: weights in f16, the optimizer's state in 8 bits and bf16 (see `optimizer.py`).

Saving rounds the run's own weights and moments to what it writes. So a run that resumes goes on exactly as the one that saved.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PIECE = 15 * 2**20


@torch.no_grad()
def save(folder: Path, model, optimizer, state: dict, config) -> None:
    weights = {n: p.detach().half() if p.ndim == 2 else p.detach().float() for n, p in model.named_parameters()}
    moments = optimizer.state()
    for n, p in model.named_parameters():
        p.copy_(weights[n])
    optimizer.load(moments)
    tensors = {**{f"weight.{n}": w for n, w in weights.items()}, **moments}
    pieces: list[dict] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > PIECE:
            pieces.append({})
            size = 0
        pieces[-1][name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    for i, piece in enumerate(pieces):
        save_file(piece, str(folder / f"state-{i}.safetensors"))
    meta = {**state, "optimizer_steps": optimizer.steps, "pieces": len(pieces), "config": vars(config)}
    (folder / "state.json").write_text(json.dumps(meta, indent=1) + "\n")


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The description of a checkpoint and its tensors."""
    meta = json.loads((folder / "state.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for i in range(meta["pieces"]):
        tensors.update(load_file(str(folder / f"state-{i}.safetensors")))
    return meta, tensors


@torch.no_grad()
def load(folder: Path, model, optimizer=None) -> dict:
    """Fills a model and its optimizer; returns the counters of the run."""
    meta, tensors = read(folder)
    for n, p in model.named_parameters():
        p.copy_(tensors[f"weight.{n}"])
    if optimizer:
        optimizer.load(tensors)
        optimizer.steps = meta["optimizer_steps"]
    return {k: meta[k] for k in ("step", "progress", "tokens", "stage", "done")}
