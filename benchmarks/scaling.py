"""How long merges and sweeps take on more machines than this one, and what limits them.

    python benchmarks/scaling.py all DIR         everything below, one after the other
    python benchmarks/scaling.py calibrate DIR   measure costs here -> docs/scaling.json
    python benchmarks/scaling.py validate DIR    predict and measure 1 and 2 workers, 2 nodes
    python benchmarks/scaling.py plot            draw docs/scaling_*.svg, fill in docs/scaling.md

DIR is a folder on a disk with 4 GB free, where synthetic models are written and kept. Run it on
a machine that does nothing else. docs/scaling.md says what the model assumes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
FILE = DOCS / "scaling.json"

# Not measured: what other machines are like. Rates in bytes per second; `stream` is what one
# reader or writer gets alone.
ASSUMED: dict[str, Any] = {
    "storage": {
        "NFS server, 1.2 GB/s": {
            "read": 1.2e9, "write": 1.2e9, "stream": 0.6e9, "node_network": 1.25e9,
        },
        "parallel file system, 40 GB/s": {
            "read": 40e9, "write": 20e9, "stream": 1.5e9, "node_network": 12.5e9,
        },
    },
    "workers_per_node": 16,
    "fine-tuned models": 2,
    "sweep": {"merges": 12, "samples": 14_042, "prompt_tokens": 600, "new_tokens": 1},
}  # fmt: skip


def read() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def write(content: dict[str, Any]) -> None:
    """Keep it where the documentation finds it."""
    FILE.write_text(json.dumps(_rounded(content), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")  # more digits would not be the machine's
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def calibrate(folder: Path) -> None:
    """Measure every cost and print it."""
    from benchmarks import scaling_measure as measure
    from benchmarks.scaling_cluster import measure_dispatch

    profile: dict[str, Any] = {"machine": measure.machine()}
    print("Writing synthetic models, then measuring storage ...", flush=True)
    measure.family(folder, "0.3b")
    storage = profile["storage"] = measure.measure_storage(folder)
    print("Merging ...", flush=True)
    profile["methods"] = {
        name: measure.measure_method(folder, name, storage) for name in measure.METHODS
    }
    print("Serving ...", flush=True)
    profile["samples"] = measure.measure_samples(folder)
    profile["dispatch_seconds"] = measure_dispatch()
    write({"profile": profile, "assumed": ASSUMED})
    print(json.dumps(_rounded(profile), indent=1))


def validate(folder: Path) -> None:
    """Hold predictions against measurements and print both."""
    from benchmarks.scaling_cluster import validate as rows_of

    content = read()
    if "profile" not in content:
        raise SystemExit(f"{FILE} holds no measured costs: run `calibrate` first")
    print("Merging and scoring on Ray ...", flush=True)
    content["validation"] = rows_of(folder, content["profile"])
    write(content)
    for row in content["validation"]:
        print(
            f"{row['setting']:22} {row['what']:18} predicted {row['predicted']:7.2f} s  "
            f"measured {row['measured']:7.2f} s  error {row['error']:+.0%}  limit: {row['limit']}"
        )


def plot() -> None:
    """Draw the figures and write the numbers into the page."""
    from benchmarks.scaling_plots import draw

    content = read() | {"assumed": ASSUMED}
    if "validation" not in content:
        raise SystemExit(f"{FILE} is not complete: run `calibrate` and `validate` first")
    write(content)
    draw(content, DOCS)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["all", "calibrate", "validate", "plot"])
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.folder is None and arguments.command != "plot":
        parser.error("name a folder for the synthetic models")
    if arguments.folder is not None:
        # Not the user's own: what is remembered of these files is of no use to anyone.
        os.environ["NAN_MERGE_CACHE"] = str(arguments.folder / "hashes")
    if arguments.command in ("all", "calibrate"):
        calibrate(arguments.folder)
    if arguments.command in ("all", "validate"):
        validate(arguments.folder)
    if arguments.command in ("all", "plot"):
        plot()


if __name__ == "__main__":
    main()
