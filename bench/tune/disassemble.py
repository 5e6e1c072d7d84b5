#!/usr/bin/env python3
"""Shows the machine code that NVIDIA's driver makes of our shaders: what no statistic tells.

    mkdir /tmp/cache
    __GL_SHADER_DISK_CACHE=1 __GL_SHADER_DISK_CACHE_PATH=/tmp/cache npm run bench -- tune ...
    pip install zstandard nvidia-cuda-nvdisasm        # or nvdisasm of CUDA's toolkit on the PATH
    python3 bench/tune/disassemble.py /tmp/cache --out /tmp/sass

The driver keeps compiled pipelines in its shader cache as zstd frames, each an object that nvdisasm reads after 8 bytes
of header. Neither is documented. The cache may be read on another machine than the one that filled it; on that one it
must start out empty, and one cache for each program tells whose pipelines they are.

Prints the registers and the memory and matrix instructions of every pipeline, in the order of the cache, and writes the
disassembly to files. --control adds what the scheduler does: stall cycles, the scoreboard that an instruction sets (w, r)
and those that it waits for. A matrix that is loaded by LDS.U16 instead of LDSM, or a load whose words are waited for right
behind it, is worth a look. --banks shows the blocks of multiply-adds: how many of these read two registers of one bank, which takes
another clock, when registers that .reuse keeps are not read again.
"""

import argparse
import collections
import pathlib
import re
import shutil
import subprocess
import sys

import zstandard

FRAME = b"\x28\xb5\x2f\xfd"
HEADER = b"NVDANVVM"
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
OPCODE = re.compile(r"^(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)")
MULTIPLY_ADD = re.compile(r"^FFMA\S* R\d+,\s*([^,]+),\s*([^,]+),\s*([^,]+)$")
REGISTER = re.compile(r"^-?R(\d+)(\.reuse)?")
BLOCK_END = re.compile(r"\b(BAR\.SYNC|BRA|EXIT)\b")
SHOWN = re.compile(r"LDSM|LDS|STS|LDG|STG|LDL|STL|HMMA|BAR|SHFL|MUFU")


def find_nvdisasm() -> str:
    """nvdisasm on the PATH, or in the Python package that carries it."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    for folder in map(pathlib.Path, sys.path):
        for candidate in folder.glob("nvidia/*/bin/nvdisasm"):
            return str(candidate)
    sys.exit("there is no nvdisasm: install CUDA's toolkit or the Python package nvidia-cuda-nvdisasm")


def objects(cache: pathlib.Path) -> list[bytes]:
    """The compiled objects of a cache, in the order in which they were added."""
    out = []
    for path in sorted(cache.rglob("*.bin")):
        data = path.read_bytes()
        for match in re.finditer(re.escape(FRAME), data):
            try:
                content = zstandard.ZstdDecompressor().decompressobj().decompress(data[match.start() :])
            except zstandard.ZstdError:
                continue  # The four bytes stood there by chance.
            if content.startswith(HEADER):
                out.append(content[len(HEADER) :])
    return out


def instructions(listing: str) -> list[tuple[int, str, int]]:
    """Address, text and 128 bits of every instruction; nvdisasm prints the upper half on a line of its own."""
    lines = listing.split("\n")
    out = []
    for line, following in zip(lines, lines[1:]):
        match = INSTRUCTION.match(line)
        upper = re.search(r"/\* 0x([0-9a-f]{16}) \*/", following)
        if match and upper:
            out.append((int(match[1], 16), match[2], int(upper[1], 16) << 64 | int(match[3], 16)))
    return out


def control(bits: int) -> str:
    """The scheduling part of an instruction of Volta and later."""
    field = bits >> 105
    write, read, wait = field >> 5 & 7, field >> 8 & 7, field >> 11 & 63
    waits = "".join(str(i) for i in range(6) if wait >> i & 1)
    return f"stall {field & 15:2} w{'-' if write == 7 else write} r{'-' if read == 7 else read} wait {waits or '-':6}"


def bank_conflicts(block: list[str]) -> int:
    """Clocks that multiply-adds wait for registers: there are two banks, of even and odd numbers, with a read a clock each."""
    kept: dict[int, str] = {}
    clocks = 0
    for text in block:
        match = MULTIPLY_ADD.match(text)
        reads = [0, 0]
        keeps = {}
        for slot, operand in enumerate(match.groups() if match else ()):
            register = REGISTER.match(operand)
            if register and kept.get(slot) != register[1]:
                reads[int(register[1]) % 2] += 1
            if register and register[2]:
                keeps[slot] = register[1]
        kept = keeps
        clocks += max(0, max(reads) - 1)
    return clocks


def show_banks(code: list[tuple[int, str, int]]) -> None:
    """The blocks with many multiply-adds."""
    block: list[str] = []
    for _, text, _ in code:
        block.append(text)
        if BLOCK_END.search(text):
            count = sum(1 for line in block if MULTIPLY_ADD.match(line))
            if count >= 64:
                print(f"  block of {len(block)}: {count} multiply-adds, {bank_conflicts(block)} bank conflicts")
            block = []


def main() -> None:
    parser = argparse.ArgumentParser(description="Machine code of the pipelines in NVIDIA's shader cache.")
    parser.add_argument("cache", type=pathlib.Path, help="folder that __GL_SHADER_DISK_CACHE_PATH named")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("sass"), help="folder for the listings")
    parser.add_argument("--chip", default="SM90", help="what nvdisasm calls the GPU (SM90: H100, H200)")
    parser.add_argument("--control", action="store_true", help="show stalls and scoreboards")
    parser.add_argument("--banks", action="store_true", help="show conflicts of register banks")
    args = parser.parse_args()
    nvdisasm = find_nvdisasm()
    args.out.mkdir(parents=True, exist_ok=True)
    found = objects(args.cache)
    if not found:
        sys.exit(f"{args.cache} holds no compiled pipeline")
    for number, content in enumerate(found):
        binary = args.out / f"{number}.nvuc"
        binary.write_bytes(content)
        run = subprocess.run([nvdisasm, "--binary", args.chip, "-hex", str(binary)], capture_output=True, text=True)
        if run.returncode != 0:
            print(f"{number}: {run.stderr.strip()}")
            continue
        code = instructions(run.stdout)
        listing = (f"{at:05x} {control(bits) if args.control else ''} {text}" for at, text, bits in code)
        (args.out / f"{number}.sass").write_text("\n".join(listing) + "\n")
        counts = collections.Counter(m[1] for _, text, _ in code if (m := OPCODE.match(text)))
        registers = re.search(r"Register count=(\d+)", run.stdout)
        shown = ", ".join(f"{count} {name}" for name, count in counts.most_common() if SHOWN.match(name))
        print(f"{number}: {len(code)} instructions, {registers[1] if registers else '?'} registers; {shown}")
        if args.banks:
            show_banks(code)


if __name__ == "__main__":
    main()
