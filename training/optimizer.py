"""Muon for the matrices of the layers, AdamW for embeddings and norms; and a compact form of their state.

Muon (Jordan et al., 2024): momentum, made orthogonal by Newton-Schulz steps, scaled to the size of AdamW's updates as in
Moonlight (arXiv 2502.16982), so one learning rate serves both. Matrices of one shape are made orthogonal together.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, about: g [B, rows, columns]."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).to(g.dtype)


class Optimizer:
    """Steps with `step(rate)`; gradients are cleared by it."""

    def __init__(self, model: nn.Module, momentum=0.95, betas=(0.9, 0.95), decay=0.05):
        self.names = {n: p for n, p in model.named_parameters()}
        self.matrices = {n: p for n, p in self.names.items() if p.ndim == 2 and n.startswith("layers.")}
        self.others = {n: p for n, p in self.names.items() if n not in self.matrices}
        self.momentum, self.betas, self.decay, self.steps = momentum, betas, decay, 0
        self.m = {n: torch.zeros_like(p) for n, p in self.names.items()}
        self.v = {n: torch.zeros_like(p) for n, p in self.others.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.steps += 1
        groups = defaultdict(list)
        for n, p in self.matrices.items():
            groups[p.shape].append(n)
        for shape, names in groups.items():
            params = [self.matrices[n] for n in names]
            grads, moments = [p.grad for p in params], [self.m[n] for n in names]
            torch._foreach_lerp_(moments, grads, 1 - self.momentum)
            looking_ahead = torch._foreach_lerp(grads, moments, self.momentum)
            updates = orthogonal(torch.stack(looking_ahead)) * (0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(params, 1 - rate * self.decay)
            torch._foreach_add_(params, list(updates.unbind()), alpha=-rate)
        params = list(self.others.values())
        grads, m, v = [p.grad for p in params], [self.m[n] for n in self.others], [self.v[n] for n in self.others]
        torch._foreach_lerp_(m, grads, 1 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, grads, grads, 1 - self.betas[1])
        root = torch._foreach_div(v, 1 - self.betas[1] ** self.steps)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        torch._foreach_addcdiv_(params, m, root, -rate / (1 - self.betas[0] ** self.steps))
        for p in self.names.values():
            p.grad = None

    # State: the moments of the matrices in 8 bits with a scale for each row, those of the others in bf16.

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        out = {}
        for n, m in self.m.items():
            if n in self.others:
                out[f"m.{n}"] = m.bfloat16()
                continue
            scale = (m.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
            out[f"m.{n}"] = (m / scale).round().to(torch.int8)
            out[f"scale.{n}"] = scale
        out.update({f"v.{n}": v.bfloat16() for n, v in self.v.items()})
        return out

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for n, m in self.m.items():
            stored = state[f"m.{n}"].to(m.device).float()
            m.copy_(stored * state[f"scale.{n}"].to(m.device) if f"scale.{n}" in state else stored)
        for n, v in self.v.items():
            v.copy_(state[f"v.{n}"])
