"""CUDA peers of the benchmark: `peers.py torch` or `peers.py minference`, a request on stdin, one line of JSON on stdout.

torch: PyTorch's scaled_dot_product_attention by FlashAttention and by cuDNN, dense.
minference: MInference's own Triton kernels and CUDA index builder, from FOLDER/minference (scripts/fetch_peers.sh).
Its estimate and its top-k are PyTorch code inside its model patch, which handles one head at a time and needs a model;
here the same operations run for all heads at once.

Request:  {"folder", "seconds", "budgetMs", "checkRows", "cases": [{"pattern", "seqLen", "heads", "headDim", "params",
          "columns", "runs"}]}
Response: {"software", "ceilings", "rows", "absent"}, as in bench/results.ts.

q, k and v are normal noise, f16. Times are medians of CUDA events after a warm-up that also compiles and tunes; sampled
rows of head 0 are compared with float64 attention over the keys that the kernel was given.
"""

import json
import math
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = 64  # rows and keys of a block of every sparse index
ESTIMATE_ROWS = 64
DEVICE = "cuda"


@dataclass
class Case:
    """One layer, [1, heads, seqLen, headDim]."""

    pattern: str
    seqLen: int
    heads: int
    headDim: int
    params: dict[str, float]
    columns: list[int]  # the given vertical-slash index
    runs: list[int]  # of diagonals: lo, hi, lo, hi, ...

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1)
        shape = (1, self.heads, self.seqLen, self.headDim)
        q, k, v = (torch.randn(shape, device=DEVICE, dtype=torch.float16) for _ in range(3))
        return q, k, v


@dataclass
class Run:
    """What a peer does for a case: its stages in order, and the keys that a row block's pairs are."""

    stages: dict[str, Callable[[], Any]]
    output: Callable[[], Tensor]
    density: float
    visible: Callable[[int], Tensor]  # row -> positions of its keys, for head 0


class Clock:
    """Times functions on the GPU."""

    def __init__(self, budget_ms: float) -> None:
        self.budget_ms = budget_ms

    def median(self, function: Callable[[], Any]) -> tuple[float, int]:
        """Milliseconds and repetitions (3 to 20)."""
        for _ in range(2):  # the first one compiles
            first = self._passes(function, 1)[0]
        repetitions = min(20, max(3, round(self.budget_ms / max(first, 1e-3))))
        times = sorted(self._passes(function, repetitions))
        middle = repetitions // 2
        return (times[middle] if repetitions % 2 else (times[middle - 1] + times[middle]) / 2), repetitions

    @staticmethod
    def _passes(function: Callable[[], Any], repetitions: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repetitions)]
        for start, end in events:
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


def relative_error(case: Case, run: Run, rows: int) -> float:
    """||o - reference|| / ||reference|| over sampled rows of head 0, the reference in float64."""
    q, k, v = (x[0, 0] for x in case.qkv())
    sample = [round(i * (case.seqLen - 1) / max(1, rows - 1)) for i in range(rows)]
    actual = run.output()[0, 0, sample].double()
    expected = []
    for row in sample:
        keys = run.visible(row)
        scores = (k[keys].double() @ q[row].double()) / math.sqrt(case.headDim)
        expected.append(torch.softmax(scores, 0) @ v[keys].double())
    reference = torch.stack(expected)
    error = ((actual - reference).norm() / reference.norm()).item()
    return error if math.isfinite(error) else 1e9


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_dense(backend: SDPBackend) -> Callable[[Case], Run]:
    def prepare(case: Case) -> Run:
        q, k, v = case.qkv()

        def attention() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return Run({"kernel": attention}, attention, 1.0, lambda row: torch.arange(row + 1, device=DEVICE))

    return prepare


def matmul_ceiling(clock: Clock, size: int = 8192) -> float:
    """TFLOPS of PyTorch's f16 matrix product."""
    a, b = (torch.randn((size, size), device=DEVICE, dtype=torch.float16) for _ in range(2))
    return 2 * size**3 / clock.median(lambda: a @ b)[0] / 1e9


# --- MInference ------------------------------------------------------------------------------------------------------


class MInference:
    """MInference's kernels, loaded by file: `minference` becomes a namespace package of the fetched files alone."""

    def __init__(self, folder: Path) -> None:
        sources = [folder / "csrc" / name for name in ("kernels.cpp", "vertical_slash_index.cu")]
        missing = [str(path) for path in sources if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing: run scripts/fetch_peers.sh")
        sys.path.insert(0, str(folder))
        # Compiles (a minute) while other cases run.
        self._cuda: Future[ModuleType] = ThreadPoolExecutor(1).submit(self._compile, sources)

    @staticmethod
    def _compile(sources: list[Path]) -> ModuleType:
        from torch.utils.cpp_extension import load

        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
        return load(name="minference_cuda", sources=[str(path) for path in sources], extra_cuda_cflags=["-O3"])

    def a_shape(self, case: Case) -> Run:
        from minference.ops.streaming_kernel import streaming_forward

        q, k, v = case.qkv()
        init, local = int(case.params["initSize"]), int(case.params["localSize"])
        position = torch.arange(case.seqLen, device=DEVICE)

        def attention() -> Tensor:
            return streaming_forward(q, k, v, init, local)

        def visible(row: int) -> Tensor:
            keys = position[: row + 1]
            return keys[(keys < init) | (row - keys < local)]

        pairs = (position + 1).clamp(max=init + local).sum().item()
        return Run({"kernel": attention}, attention, pairs / causal_pairs(case.seqLen), visible)

    def block_sparse(self, case: Case) -> Run:
        from minference.ops.block_sparse_flash_attention import _build_block_index, _triton_block_sparse_attention

        q, k, v = case.qkv()  # seqLen is a multiple of 64: nothing to pad
        seqlens = torch.tensor([case.seqLen], dtype=torch.int32, device=DEVICE)
        scale = case.headDim**-0.5

        def index() -> Tensor:
            return _build_block_index(q, k, int(case.params["topK"]), BLOCK, BLOCK)

        blocks = index()

        def attention() -> Tensor:
            return _triton_block_sparse_attention(q, k, v, seqlens, blocks, scale, BLOCK, BLOCK)

        row_block = torch.arange(blocks.shape[-2], device=DEVICE)
        kept = torch.arange(blocks.shape[-1], device=DEVICE) <= row_block[:, None]

        def visible(row: int) -> Tensor:
            b = row // BLOCK
            keys = (blocks[0, 0, b][kept[b]].long()[:, None] * BLOCK + torch.arange(BLOCK, device=DEVICE)).flatten()
            return keys[keys <= row]

        pairs = block_pairs(row_block[:, None] * BLOCK - blocks[0] * BLOCK)[kept.expand_as(blocks[0])].sum().item()
        density = pairs / case.heads / causal_pairs(case.seqLen)
        return Run({"estimate": index, "kernel": attention}, attention, density, visible)

    def static_vertical_slash(self, case: Case) -> Run:
        from_cuda = self._cuda.result()
        sys.modules["minference.cuda"] = from_cuda  # what its setup would have built
        from minference.ops.pit_sparse_flash_attention_v2 import _triton_mixed_sparse_attention

        q, k, v = case.qkv()
        seqlens = torch.tensor([case.seqLen], dtype=torch.int32, device=DEVICE)
        columns = torch.tensor(case.columns, dtype=torch.int32, device=DEVICE)
        diagonals = [d for lo, hi in zip(case.runs[::2], case.runs[1::2]) for d in range(lo, hi + 1)]
        slashes = torch.tensor(diagonals[::-1], dtype=torch.int32, device=DEVICE)  # descending
        per_head = [x.expand(1, case.heads, -1).contiguous() for x in (columns, slashes)]

        def convert() -> list[Tensor]:
            return from_cuda.convert_vertical_slash_indexes(seqlens, *per_head, case.seqLen, BLOCK, BLOCK)

        block_count, block_offset, column_count, column_index = convert()

        def attention() -> Tensor:
            index = (block_count, block_offset, column_count, column_index)
            return _triton_mixed_sparse_attention(q, k, v, seqlens, *index, case.headDim**-0.5, BLOCK, BLOCK)

        def visible(row: int) -> Tensor:
            b = row // BLOCK
            starts = block_offset[0, 0, b, : block_count[0, 0, b]].long()
            keys = (starts[:, None] + torch.arange(BLOCK, device=DEVICE)).flatten()
            return torch.cat([keys[keys <= row], column_index[0, 0, b, : column_count[0, 0, b]].long()])

        # All heads have the same index.
        first_row = torch.arange(block_count.shape[-1], device=DEVICE)[:, None] * BLOCK
        used = torch.arange(block_offset.shape[-1], device=DEVICE) < block_count[0, 0][:, None]
        pairs = block_pairs(first_row - block_offset[0, 0])[used].sum().item() + BLOCK * column_count[0, 0].sum().item()
        return Run({"convert": convert, "kernel": attention}, attention, pairs / causal_pairs(case.seqLen), visible)

    def vertical_slash(self, case: Case) -> Run:
        """The estimate and the top-k of the input, then the given index: noise has no diagonals worth finding."""
        q, k, _ = case.qkv()
        n, rows = case.seqLen, min(ESTIMATE_ROWS, case.seqLen)
        given = self.static_vertical_slash(case)

        def estimate() -> tuple[Tensor, Tensor]:
            """Attention of the last rows, summed along columns and along diagonals, both with forced entries."""
            scores = torch.einsum("bhmk,bhnk->bhmn", q[:, :, -rows:], k) / math.sqrt(case.headDim)
            scores[..., -rows:].masked_fill_(torch.ones((rows, rows), dtype=torch.bool, device=DEVICE).triu(1), -torch.inf)
            weights = torch.softmax(scores, -1, dtype=torch.float32)
            vertical = weights.sum(-2)
            vertical[..., :30] = torch.inf
            # Row r moved right by rows - 1 - r: each diagonal becomes a column, the main one the last.
            padded = F.pad(weights, (rows, rows))
            width = padded.shape[-1]
            diagonals = padded.as_strided(
                (1, case.heads, rows, n), (padded.stride(0), padded.stride(1), width + 1, 1), padded.storage_offset() + 1
            ).sum(-2)
            diagonals[..., -100:] = torch.inf
            return vertical, diagonals

        vertical, diagonals = estimate()

        def topk() -> tuple[Tensor, Tensor]:
            columns = torch.topk(vertical, min(n, int(case.params["verticalSize"])), -1).indices
            slashes = (n - 1) - torch.topk(diagonals, min(n, int(case.params["slashSize"])), -1).indices
            return columns.int().sort(-1).values, slashes.int().sort(-1, descending=True).values

        return Run({"estimate": estimate, "topk": topk, **given.stages}, given.output, given.density, given.visible)


def causal_pairs(n: int) -> float:
    return n * (n + 1) / 2


def block_pairs(distance: Tensor) -> Tensor:
    """Causal pairs of 64 rows with 64 keys that begin `distance` positions earlier."""
    rows = torch.arange(BLOCK, device=DEVICE)
    table = torch.stack([(rows + d + 1).clamp(0, BLOCK).sum() for d in range(-BLOCK, BLOCK)])
    return table[distance.clamp(-BLOCK, BLOCK - 1) + BLOCK]


# --- all -------------------------------------------------------------------------------------------------------------


def measure(impl: str, case: Case, prepare: Callable[[Case], Run], clock: Clock, rows: int) -> dict[str, Any]:
    run = prepare(case)
    times = {name: clock.median(stage) for name, stage in run.stages.items()}
    stages = {name: times.get(name, (0.0, 0))[0] for name in ("estimate", "topk", "convert", "kernel")}
    shape = {"pattern": case.pattern, "seqLen": case.seqLen, "heads": case.heads, "headDim": case.headDim}
    return {
        "impl": impl,
        **shape,
        "tier": "cuda",
        "dtype": "f16",
        "params": case.params,
        "ms": sum(stages.values()),
        "stages": stages,
        "density": run.density,
        "relError": relative_error(case, run, rows) if rows > 0 else None,
        "repetitions": times["kernel"][1],
    }


def main() -> None:
    if sys.argv[1] == "compile":  # ahead of a run, so that it need not wait
        MInference(Path(sys.argv[2]) / "minference")._cuda.result()
        return
    request = json.load(sys.stdin)
    deadline = time.monotonic() + request["seconds"]
    clock = Clock(request["budgetMs"])
    software = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    result: dict[str, Any] = {"software": software, "ceilings": {}, "rows": [], "absent": []}
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device")
    jobs: list[tuple[str, Case, Callable[[Case], Run]]] = []
    cases = [Case(**c) for c in request["cases"]]
    if sys.argv[1] == "torch":
        software["cudnn"] = str(torch.backends.cudnn.version())
        result["ceilings"]["matmulF16"] = matmul_ceiling(clock)
        backends = {"torch-flash": SDPBackend.FLASH_ATTENTION, "torch-cudnn": SDPBackend.CUDNN_ATTENTION}
        jobs = [(impl, case, torch_dense(backend)) for case in cases for impl, backend in backends.items()]
    else:
        import triton

        minference = MInference(Path(request["folder"]) / "minference")
        software["triton"] = triton.__version__
        software["minference"] = (Path(request["folder"]) / "minference" / "VERSION").read_text().strip()
        # Those that need the compiled index builder come last.
        order = ["a_shape", "block_sparse", "static_vertical_slash", "vertical_slash"]
        jobs = [
            ("minference", case, getattr(minference, case.pattern)) for case in sorted(cases, key=lambda c: order.index(c.pattern))
        ]
    for impl, case, prepare in jobs:
        name = f"{case.pattern} at {case.seqLen}"
        if time.monotonic() > deadline:
            result["absent"].append({"impl": impl, "reason": f"{name}: out of time"})
            continue
        try:
            result["rows"].append(measure(impl, case, prepare, clock, request["checkRows"]))
            print(result["rows"][-1], file=sys.stderr)
        except Exception as error:  # whatever a peer cannot do is listed, the rest goes on
            result["absent"].append({"impl": impl, "reason": f"{name}: {type(error).__name__}: {str(error).strip()[:300]}"})
        torch.cuda.empty_cache()
        print(json.dumps(result), flush=True)  # the last line counts: one that is cut short loses nothing


if __name__ == "__main__":
    main()
