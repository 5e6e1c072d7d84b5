#!/usr/bin/env python3
"""Trains the model, in slices of wall time, each going on where the one before stopped.

    python3 training/train.py --out OUT --seconds 500                  # first slice
    python3 training/train.py --out OUT --seconds 500 --resume DIR     # next slice

The curriculum (PLANS) gives each stage a share of the whole budget. The budget is counted in seconds of training
(`--budget-seconds`), so that it fits whatever the speed, or in steps (`--budget-steps`), so that a run can be repeated exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
START = time.time()

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import evaluate
from checkpoint import load, save
from data import Batches, Corpus
from model import SIZES, Config, Llama, half_precision, losses
from optimizer import Optimizer


@dataclass(frozen=True)
class Stage:
    length: int
    #: Of the whole budget.
    share: float
    #: Tokens of a step.
    tokens: int
    #: Of the peak learning rate.
    rate: float
    #: Share of rows whose positions jump.
    skip: float


#: length:share:tokens of a step:rate:skip, by the size of the model, for a GPU unless stated otherwise. Rows of up to 256 tokens are
#: drills.
PLANS = {
    "base": "32:0.02:65536:1:0,128:0.03:65536:1:0,512:0.13:131072:1:0.2,2048:0.20:262144:1:0.3,"
    "8192:0.24:262144:0.8:0.3,32768:0.26:524288:0.5:0.1,131072:0.12:524288:0.3:0",
    "small": "32:0.02:65536:1:0,128:0.03:65536:1:0,512:0.13:131072:1:0.2,2048:0.20:262144:1:0.3,"
    "8192:0.26:262144:0.8:0.3,32768:0.30:524288:0.5:0.1,131072:0.06:262144:0.3:0",
    "small cpu": "32:0.03:2048:1:0,128:0.07:4096:1:0,512:0.25:8192:1:0,1024:0.20:8192:1:0,2048:0.20:16384:0.8:0,"
    "4096:0.15:16384:0.7:0,8192:0.10:16384:0.6:0",
    "tiny": "32:0.3:2048:1:0,96:0.3:2048:1:0,384:0.4:3072:0.7:0",
}


def parse_plan(text: str) -> list[Stage]:
    stages = []
    for part in text.split(","):
        length, share, tokens, rate, skip = part.split(":")
        stages.append(Stage(int(length), float(share), int(tokens), float(rate), float(skip)))
    total = sum(s.share for s in stages)
    return [Stage(s.length, s.share / total, s.tokens, s.rate, s.skip) for s in stages]


def stage_at(stages: list[Stage], progress: float) -> int:
    """The stage in which a part of the budget, 0 to 1, falls."""
    end = 0.0
    for i, stage in enumerate(stages):
        end += stage.share
        if progress < end - 1e-9:
            return i
    return len(stages) - 1


def rate_at(stages: list[Stage], progress: float, peak: float) -> float:
    """Warm-up over 1 % of the budget, each stage at its rate, and down to 5 % of that over the last 30 % of the budget."""
    shape = min(1.0, (progress + 1e-4) / 0.01) * min(1.0, 0.05 + 0.95 * (1 - progress) / 0.3)
    return peak * stages[stage_at(stages, progress)].rate * shape


class Loadable(Dataset):
    """Micro-batches of one stage from a first one on."""

    def __init__(self, batches: Batches, first: int):
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int):
        return tuple(torch.from_numpy(x) for x in self.batches[self.first + i])


def serial(_):
    torch.set_num_threads(1)


def feed(args, corpus, stage: Stage, rows: int, first: int, reach: int):
    batches = Loadable(Batches(corpus, args.seed, stage.length, rows, reach, stage.skip), first)
    if args.workers == 0:
        return (batches[i] for i in range(1 << 30))
    ordered = range(1 << 30)
    return iter(
        DataLoader(
            batches,
            sampler=ordered,
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=2,
            pin_memory=args.cuda,
            worker_init_fn=serial,
        )
    )


def choose_attention(c: Config, length: int, rows: int, log) -> None:
    """Times the attention kernels that the GPU offers, forward and backward, and leaves the fastest one on."""
    cuda = torch.backends.cuda
    switches = {"cudnn": cuda.enable_cudnn_sdp, "flash": cuda.enable_flash_sdp, "efficient": cuda.enable_mem_efficient_sdp}

    def heads(count: int) -> torch.Tensor:
        x = torch.randn(rows, length, count, c.head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        return x.requires_grad_()

    q, k, v = heads(c.heads), heads(c.kv_heads), heads(c.kv_heads)
    slope = torch.randn_like(q)

    def run() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).backward(slope)

    cuda.enable_math_sdp(False)
    times = {}
    for name in ("cudnn", "flash"):
        for other, switch in switches.items():
            switch(other == name)
        try:
            for _ in range(2):
                run()
            torch.cuda.synchronize()
            begin = time.time()
            for _ in range(3):
                run()
            torch.cuda.synchronize()
            times[name] = (time.time() - begin) / 3
        except RuntimeError as error:
            log({"attention": name, "error": str(error)[:200]})
    best = min(times, key=times.get) if times else "efficient"
    for name, switch in switches.items():
        switch(name == best)
    cuda.enable_math_sdp(not times)
    log({"attention": best, "ms": {k: round(1000 * t, 2) for k, t in times.items()}, "length": length})


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the log")
    p.add_argument("--resume", type=Path, help="folder of the checkpoint to go on from")
    p.add_argument("--seconds", "--steps-seconds", type=float, default=500, help="wall time of this slice, start included")
    p.add_argument("--budget-seconds", type=float, default=1800, help="seconds of training of all slices together")
    p.add_argument("--budget-steps", type=int, help="count the budget in steps instead")
    p.add_argument("--stop-step", type=int, help="stop after this step")
    p.add_argument("--plan", help="length:share:tokens of a step:rate:skip, ...; default: that of the size")
    p.add_argument("--size", choices=SIZES, default="base")
    p.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    p.add_argument("--answer-weight", type=float, default=1.0, help="weight of the mean answer loss beside the mean text loss")
    p.add_argument("--micro", type=int, default=131_072, help="tokens that go through the model at once")
    p.add_argument("--reach", type=int, default=131_072, help="farthest position of rows whose positions jump")
    p.add_argument("--novel-rows", type=float, default=1.0, help="share of rows in which the novels count as text")
    p.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    p.add_argument("--compile", type=int, default=int(torch.cuda.is_available()))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--save-every", type=float, default=150, help="seconds between checkpoints")
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--final-eval", type=int, default=1)
    args = p.parse_args()
    args.cuda = torch.cuda.is_available()
    device = "cuda" if args.cuda else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    history = (args.resume / "log.jsonl").read_text() if args.resume and (args.resume / "log.jsonl").exists() else ""
    logfile = (args.out / "log.jsonl").open("w")
    logfile.write(history)

    def log(entry: dict) -> None:
        line = json.dumps({"t": round(time.time() - START, 1), **entry})
        print(line, flush=True)
        logfile.write(line + "\n")
        logfile.flush()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    c = SIZES[args.size]
    model = Llama(c).to(device)
    optimizer = Optimizer(model)
    state = {"step": 0, "progress": 0.0, "tokens": 0, "stage": 0, "done": 0}
    if args.resume:
        state = load(args.resume, model, optimizer)
    corpus = Corpus(novel_rows=args.novel_rows)
    stages = parse_plan(args.plan or PLANS.get(f"{args.size} {device}") or PLANS[args.size])
    log({"size": args.size, "parameters": sum(x.numel() for x in model.parameters()), "device": device, **state})
    compiled, loss_function = bool(args.compile), losses
    if compiled:
        # Layers share their code but may each compile once, for each length.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.automatic_dynamic_shapes = False
        for block in model.layers:
            block.compile()
        loss_function = torch.compile(losses)

    def learn(ids: torch.Tensor, classes: torch.Tensor, positions: torch.Tensor, micros: int) -> torch.Tensor:
        """Adds the gradients of a micro-batch; returns the sums of `losses`."""
        with half_precision(device):
            x = model.hidden(ids[:, :-1], positions)
            sums = loss_function(x, model.embed_tokens.weight, ids[:, 1:], classes)
        loss = sums[0] / sums[1].clamp_min(1) + args.answer_weight * sums[2] / sums[3].clamp_min(1)
        (loss / micros).backward()
        return sums.detach()

    source, current = None, -1
    last_save = last_log = time.time()
    window: list[torch.Tensor] = []
    window_tokens, fresh = 0, True
    # Time for the last checkpoint and the check of accuracy.
    reserve = 40 if args.cuda and args.final_eval else 5

    while state["progress"] < 1 - 1e-9:
        now = time.time()
        if now - START > args.seconds - reserve or (args.stop_step is not None and state["step"] >= args.stop_step):
            break
        index = stage_at(stages, state["progress"])
        stage = stages[index]
        rows = max(1, min(args.micro, stage.tokens) // stage.length)
        if index != current:
            if index != state["stage"]:
                state.update(stage=index, done=0)
            if args.cuda:
                choose_attention(c, stage.length, rows, log)
                torch.cuda.empty_cache()
            source, current = feed(args, corpus, stage, rows, state["done"], args.reach), index
            log({"stage": stage.length, "rows": rows, "micro_batches": max(1, stage.tokens // (rows * stage.length))})
            fresh = True
        step_start = time.time()
        micros = max(1, stage.tokens // (rows * stage.length))
        for _ in range(micros):
            ids, classes, positions = (x.to(device, non_blocking=True) for x in next(source))
            try:
                sums = learn(ids.long(), classes, positions, micros)
            except Exception as error:
                if not (args.cuda and fresh and compiled):
                    raise
                # Better slowly than not at all: what compiles and what the kernels take depends on versions.
                log({"compiling_failed": f"{type(error).__name__}: {str(error)[:500]}"})
                evaluate.eager(model)
                compiled, loss_function = False, losses
                model.zero_grad(set_to_none=True)
                sums = learn(ids.long(), classes, positions, micros)
            window.append(sums)
            state["done"] += 1
        rate = rate_at(stages, state["progress"], args.rate)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate)
        state["step"] += 1
        state["tokens"] += micros * rows * stage.length
        window_tokens += micros * rows * stage.length
        if args.cuda and (fresh or state["step"] % 4 == 0):
            torch.cuda.synchronize()
        # The first step of a stage compiles: it does not count against the budget.
        spent = 0 if fresh else time.time() - step_start
        fresh = False
        state["progress"] += 1 / args.budget_steps if args.budget_steps else spent / args.budget_seconds
        if state["step"] % args.log_every == 0:
            text, texts, answer, answers, right = torch.stack(window).sum(0).tolist()
            now = time.time()
            log(
                {
                    "step": state["step"],
                    "progress": round(state["progress"], 4),
                    "length": stage.length,
                    "text_loss": round(text / max(texts, 1), 6),
                    "answer_loss": round(answer / max(answers, 1), 6),
                    "answer_accuracy": round(right / max(answers, 1), 4),
                    "rate": round(rate, 6),
                    "tokens": state["tokens"],
                    "tokens_per_second": round(window_tokens / (now - last_log)),
                    "tflops": round(window_tokens / (now - last_log) * c.train_flops(stage.length) / 1e12, 1),
                }
            )
            window, window_tokens, last_log = [], 0, now
        if time.time() - last_save > args.save_every:
            save(args.out, model, optimizer, state, c)
            last_save = time.time()

    # What a run that goes on from here reads is what this run goes on with: see `checkpoint.py`.
    save(args.out, model, optimizer, state, c)
    log({"saved": True, **state})
    if args.final_eval:
        current_length = stages[stage_at(stages, min(state["progress"], 0.9999))].length
        for length in sorted({max(256, current_length // 4), current_length}):
            left = args.seconds - (time.time() - START)
            if left < 8:
                break
            log({"evaluation": length, **evaluate.quick(model, length, samples=12, seconds=left / 3)})
    logfile.close()
    source = None  # ends the workers


if __name__ == "__main__":
    main()
