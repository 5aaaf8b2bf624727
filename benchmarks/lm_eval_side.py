"""The side of lm-evaluation-harness: prints its seconds, choices and log-likelihoods.

For language_speed.py it runs in an environment of its own; tests/peers/test_peers_lm_eval.py runs
it beside ours, with the package that requirements/peers.txt brings.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(job: dict[str, Any]) -> None:
    """Log-likelihoods of all choices by the `hf` backend: prints seconds and choices."""
    model = HFLM(
        pretrained=job["model"],
        dtype=job["dtype"],
        batch_size=job["batch_size"],
        device="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=False,
    )
    choices = job["choices"]
    requests = [
        Instance(
            request_type="loglikelihood",
            doc={},
            arguments=(row["lead"] + row["question"], choice),
            idx=at,
        )
        for row in job["samples"]
        for at, choice in enumerate(choices)
    ]
    model.loglikelihood(requests[-4 * len(choices) :], disable_tqdm=True)  # warm up
    started = time.perf_counter()
    found = [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
    seconds = time.perf_counter() - started
    rows = [found[at : at + len(choices)] for at in range(0, len(found), len(choices))]
    answers = [row.index(max(row)) for row in rows]
    found = {"seconds": seconds, "answers": answers, "log_likelihoods": rows}
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
