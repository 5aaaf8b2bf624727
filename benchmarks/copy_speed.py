"""Gigabytes per second between a file in the system's cache and memory at several alignments.

    python benchmarks/copy_speed.py [FOLDER]

Copies a file of 256 MiB in pieces of 512 KiB, out of it and into it, with memory that begins so
many bytes into a page. Seconds are the processor's, the best of several turns. Why
`nan_merge/aligned.py` exists: on some processors 16 bytes, where numpy's arrays lie, take three
times as long as 0.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable

FILE_BYTES, PIECE_BYTES = 256 << 20, 512 << 10
TURNS = 5
ALIGNMENTS = (0, 8, 16, 32, 64)


def speed(copy: Callable[[int, memoryview, int], int], descriptor: int, view: memoryview) -> float:
    """Gigabytes per second of the processor's time, in the fastest turn."""
    seconds: list[float] = []
    for _ in range(TURNS):
        started = time.process_time()
        for offset in range(0, FILE_BYTES, PIECE_BYTES):
            copy(descriptor, view, offset)
        seconds.append(time.process_time() - started)
    return FILE_BYTES / min(seconds) / 1e9


def read(descriptor: int, view: memoryview, offset: int) -> int:
    """One piece out of the file."""
    return os.preadv(descriptor, [view], offset)


def main() -> None:
    """Print a line per alignment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where the file lies for as long as this takes")
    memory = mmap.mmap(-1, PIECE_BYTES + 4096)
    with tempfile.TemporaryFile(dir=parser.parse_args().folder) as file:
        for offset in range(0, FILE_BYTES, PIECE_BYTES):
            os.pwrite(file.fileno(), memory[:PIECE_BYTES], offset)
        print("bytes into a page   read GB/s   write GB/s")
        for alignment in ALIGNMENTS:
            view = memoryview(memory)[alignment : alignment + PIECE_BYTES]
            reading = speed(read, file.fileno(), view)
            writing = speed(os.pwrite, file.fileno(), view)
            print(f"{alignment:17} {reading:11.1f} {writing:12.1f}")


if __name__ == "__main__":
    main()
