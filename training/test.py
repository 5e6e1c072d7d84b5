#!/usr/bin/env python3
"""Checks of the recipe on a CPU: data, resuming, export. Takes a minute or two.

python3 training/test.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch

from checkpoint import save
from data import ANSWER, TEXT, VOCAB, Batches, Corpus, novel_text
from export import write_gguf, write_hf
from model import SIZES, Llama
from optimizer import Optimizer, orthogonal

HERE = Path(__file__).parent


class Data(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.corpus = Corpus(pool_sentences=2000)

    def test_rows_are_the_tokens_of_their_text(self):
        for length in (64, 512, 3000, 20_000):
            for i in range(20 if length < 4000 else 2):
                row = self.corpus.row(np.random.default_rng([i, length]), length)
                self.assertEqual(len(row.ids), length)
                self.assertEqual(len(row.classes), length)
                text = self.corpus.tokenizer.decode(row.ids[1:], skip_special_tokens=False)
                self.assertEqual(self.corpus.tokenizer.encode(text).ids, row.ids)

    def test_novels_count_in_the_rows_that_may_learn_them(self):
        def novels_counted(share: float) -> int:
            corpus, count = Corpus(pool_sentences=2000, novel_rows=share), 0
            text = novel_text()
            for i in range(20):
                row = corpus.row(np.random.default_rng([6, i]), 3000)
                at = 0
                for end in range(1, len(row) + 1):
                    if end == len(row) or row.classes[end] != row.classes[at]:
                        if row.classes[at] == TEXT and end - at >= 60:
                            count += corpus.tokenizer.decode(row.ids[at + 20 : at + 40]) in text
                        at = end
            return count

        self.assertGreater(novels_counted(1), 20)
        self.assertEqual(novels_counted(0), 0)

    def test_answers_stand_in_the_text_before(self):
        found = 0
        for i in range(30):
            row = self.corpus.row(np.random.default_rng([5, i]), 1024)
            text, at = "", 0
            while at < len(row):
                end = at
                while end < len(row) and row.classes[end] == row.classes[at]:
                    end += 1
                piece = self.corpus.tokenizer.decode(row.ids[at:end])
                if row.classes[at] == ANSWER and end < len(row):
                    for word in piece.strip(" .").split(", "):
                        self.assertIn(word, text)
                        found += 1
                text += piece
                at = end
        self.assertGreater(found, 100)

    def test_problems_fit_and_hold_the_answer_at_its_depth(self):
        for kind in ("passkey", "needle", "kv", "variables"):
            for length in (256, 2000):
                for depth in (0.0, 0.5, 1.0):
                    prompt, answer = self.corpus.problem(kind, np.random.default_rng(3), length, depth)
                    self.assertIn(len(prompt), range(length - 60, length + 1) if kind == "kv" else [length])
                    text = self.corpus.tokenizer.decode(prompt)
                    first = self.corpus.tokenizer.decode(answer).strip().split(",")[0]
                    self.assertIn(first, text)
                    if kind != "variables" and length == 2000:
                        self.assertAlmostEqual(text.index(first) / len(text), depth, delta=0.15)

    def test_batches_depend_on_their_index_alone(self):
        batches = Batches(self.corpus, 1, 256, 2, 4096, 1.0)
        first = batches[7]
        batches[8]
        for a, b in zip(first, batches[7]):
            self.assertTrue((a == b).all())
        ids, classes, positions = first
        self.assertEqual((ids.shape, classes.shape, positions.shape), ((2, 257), (2, 256), (2, 256)))
        self.assertTrue((np.diff(positions, axis=1) >= 1).all())
        self.assertLess(positions.max(), 4096)


class Training(unittest.TestCase):
    def test_orthogonal(self):
        x = orthogonal(torch.randn(2, 48, 96, generator=torch.Generator().manual_seed(0)))
        values = torch.linalg.svdvals(x)
        self.assertTrue(((values > 0.4) & (values < 1.3)).all())

    def test_resuming_gives_the_losses_of_an_uninterrupted_run(self):
        def run(folder: Path, *more: str) -> list[dict]:
            common = "--size tiny --plan 64:1:256:1:0.5,128:1:256:1:0 --budget-steps 8 --log-every 1"
            plain = "--workers 0 --final-eval 0 --compile 0"
            command = [sys.executable, str(HERE / "train.py"), "--out", str(folder), *common.split(), *plain.split(), *more]
            subprocess.run(command, check=True, capture_output=True)
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            return [
                {k: e[k] for k in ("step", "length", "text_loss", "answer_loss", "rate")} for e in lines if "text_loss" in e
            ]

        with tempfile.TemporaryDirectory() as name:
            # Checkpoints round the state; the run that is not interrupted writes them too.
            whole = run(Path(name, "whole"), "--save-every", "0")
            run(Path(name, "half"), "--save-every", "0", "--stop-step", "3")
            resumed = run(Path(name, "rest"), "--save-every", "0", "--resume", str(Path(name, "half")))
        self.assertEqual(len(whole), 8)
        self.assertEqual(whole, resumed)

    def test_checkpoint_of_the_full_size_fits(self):
        model = Llama(SIZES["base"])
        optimizer = Optimizer(model)
        with tempfile.TemporaryDirectory() as name:
            save(Path(name), model, optimizer, {"step": 1, "progress": 0, "tokens": 0, "stage": 0, "done": 0}, SIZES["base"])
            sizes = [f.stat().st_size for f in Path(name).iterdir()]
        self.assertLessEqual(max(sizes), 16 * 2**20)
        self.assertLessEqual(len(sizes), 7)
        self.assertLessEqual(sum(sizes), 50 * 2**20)


class Export(unittest.TestCase):
    def test_hugging_face_and_gguf(self):
        from transformers import AutoTokenizer, LlamaForCausalLM

        config = SIZES["tiny"]
        torch.manual_seed(0)
        model = Llama(config)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((p * 3 if p.ndim == 2 else p + 0.1 * torch.randn_like(p)).half().float())
        weights = {n: p.detach() for n, p in model.named_parameters()}
        ids = torch.randint(0, VOCAB, (1, 300), generator=torch.Generator().manual_seed(1))
        mine = model.logits(ids)
        with tempfile.TemporaryDirectory() as name:
            write_hf(Path(name, "hf"), config, weights)
            theirs = LlamaForCausalLM.from_pretrained(
                str(Path(name, "hf")), dtype=torch.float32, attn_implementation="eager"
            ).eval()
            with torch.no_grad():
                self.assertLess((theirs(ids).logits - mine).abs().max().item(), 1e-4 * mine.abs().max().item())
            tokenizer = AutoTokenizer.from_pretrained(str(Path(name, "hf")))
            corpus = Corpus(pool_sentences=200)
            text = 'The pass key is 48213.\n\n"VAR ABCDE = 90210." Mr. Elliot\'s café, naïve — 12\n'
            self.assertEqual(tokenizer(text)["input_ids"], [corpus.bos, *corpus.encode(text)])
            self.assertEqual(tokenizer.decode(corpus.encode(text)), text)

            import gguf

            path = Path(name, "model.gguf")
            write_gguf(path, config, weights)
            reader = gguf.GGUFReader(str(path))
            for tensor in reader.tensors:
                if tensor.name != "blk.1.attn_k.weight":
                    continue
                values = gguf.dequantize(tensor.data, tensor.tensor_type)
                k = weights["layers.1.self_attn.k_proj.weight"].numpy()
                # Rows 2 d and 2 d + 1 of the file are rows d and d + 32 of the head.
                for row, source in ((0, 0), (1, 32), (2, 1), (63, 63)):
                    self.assertLess(np.abs(values[row] - k[source]).max(), 0.01 * np.abs(k).max())
            self.assertEqual(len(reader.tensors), 3 + 9 * config.layers)


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
