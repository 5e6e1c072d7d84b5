#!/usr/bin/env python3
"""Write what SmolLM2-135M-Instruct predicts, by Hugging Face transformers in float64.

    pip install -r scripts/reference_requirements.txt
    scripts/fetch_smollm2.sh
    python scripts/reference_logits.py    # test/fixtures/smollm2-135m-logits.json, some minutes on two cores
    npx biome check --write test/fixtures

The Q4_1 weights of the GGUF are dequantized, so that a runtime which computes with the same numbers must agree but for its own
rounding. Windows of the text, each read on its own; for every position of a window:
  top      the most probable next token
  log      the log-probability of the token that does follow (one fewer: the last has none)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ROOT / "assets" / "text" / "austen-persuasion-ch1-2.txt"
OUT = ROOT / "test" / "fixtures" / "smollm2-135m-logits.json"
WINDOWS, LENGTH = 16, 128
DIGITS = 4


def predictions(model: torch.nn.Module, ids: list[int]) -> dict[str, list[float]]:
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    log = torch.log_softmax(logits, dim=-1)
    follows = log[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return {
        "top": log.argmax(dim=-1).tolist(),
        "log": [round(x, DIGITS) for x in follows.tolist()],
    }


def main() -> None:
    name = MODEL.name
    tokenizer = AutoTokenizer.from_pretrained(MODEL.parent, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL.parent, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float64
    ).eval()
    ids: list[int] = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    starts = [round(i * (len(ids) - LENGTH) / (WINDOWS - 1)) for i in range(WINDOWS)]
    windows = []
    for start in starts:
        tokens = ids[start : start + LENGTH]
        windows.append({"start": start, "tokens": tokens, **predictions(model, tokens)})
        print(start, sum(windows[-1]["log"]) / (LENGTH - 1), flush=True)
    header = {
        "madeBy": f"scripts/reference_logits.py, transformers {transformers.__version__}, torch {torch.__version__}, float64",
        "model": name,
        "sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(),
        "text": TEXT.name,
        "textTokens": len(ids),
    }
    lines = ",\n".join(json.dumps(window, separators=(",", ":")) for window in windows)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(f'{json.dumps(header)[:-1]}, "windows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
