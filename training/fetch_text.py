#!/usr/bin/env python3
"""Unpack Jane Austen's six novels (public domain) from the Debian package r-cran-janeaustenr into training/text/austen.txt.xz.

    apt-get download r-cran-janeaustenr
    python3 training/fetch_text.py r-cran-janeaustenr_*.deb

The first two chapters of Persuasion are left out: they are the held-out text of the evaluation (assets/text).
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

TEXT = Path(__file__).parent / "text" / "austen.txt.xz"

# R's serialisation: the kinds of object that a character vector is made of, and the size of each string.
CHARSXP, STRSXP = 9, 16


def lazy_load_objects(rdb: bytes):
    """Yields the raw serialised objects of an R lazy-load database: length, compression letter, compressed stream, repeated."""
    at = 0
    while at + 5 <= len(rdb):
        (size,) = struct.unpack_from(">I", rdb, at)
        kind = rdb[at + 4 : at + 5]
        if kind == b"Z":  # a raw LZMA2 stream
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        elif kind == b"2":
            stream = bz2.BZ2Decompressor()
        else:
            stream = zlib.decompressobj()
        start = at + (5 if kind in (b"Z", b"2") else 4)
        raw = stream.decompress(rdb[start:])
        rest = stream.unused_data
        yield raw[:size] if len(raw) > size else raw
        at = len(rdb) - len(rest)


def lines_of(raw: bytes) -> list[str] | None:
    """The strings of a serialised character vector, or None for an object of another kind."""
    if not raw.startswith(b"X\n"):
        return None
    (version,) = struct.unpack_from(">i", raw, 2)
    at = 14
    if version == 3:
        at += 4 + struct.unpack_from(">i", raw, at)[0]
    flags, count = struct.unpack_from(">iI", raw, at)
    if flags & 0xFF != STRSXP:
        return None
    at += 8
    lines = []
    for _ in range(count):
        flags, size = struct.unpack_from(">ii", raw, at)
        assert flags & 0xFF == CHARSXP
        lines.append("" if size < 0 else raw[at + 8 : at + 8 + size].decode("utf-8", "replace"))
        at += 8 + max(size, 0)
    return lines


def clean(lines: list[str]) -> str:
    """Joins the hard line breaks inside paragraphs and drops the marks of emphasis."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", "\n".join(lines))]
    return "\n\n".join(p.replace("_", "") for p in paragraphs if p)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", sys.argv[1], folder], check=True)
        rdb = next(Path(folder).rglob("data/Rdata.rdb")).read_bytes()
    novels = [clean(lines) for lines in map(lines_of, lazy_load_objects(rdb)) if lines and len(lines) > 1000]
    for i, text in enumerate(novels):
        if text.lower().startswith("persuasion"):
            novels[i] = text[re.search(r"\n\nChapter 3\n\n", text, re.I).start() :].strip()
    assert len(novels) == 6, len(novels)
    TEXT.parent.mkdir(exist_ok=True)
    TEXT.write_bytes(lzma.compress("\n\n\n".join(novels).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{TEXT}: {len(novels)} novels, {sum(map(len, novels)):,} characters, {TEXT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
