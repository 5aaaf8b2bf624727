"""Drawn questions in the layouts of Table 3's benchmarks: ``python -m tests.table3_data DIR``."""

import sys
from pathlib import Path

from evaluators.training.drawn_questions import write_drawn_benchmarks

NUM_SAMPLES, SEED = 100, 5

if __name__ == "__main__":
    write_drawn_benchmarks(Path(sys.argv[1]), NUM_SAMPLES, SEED)
