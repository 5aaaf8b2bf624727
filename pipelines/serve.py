"""Serve a model until Ctrl-C."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from evaluators.serve import check_servable, serve_model
from nan_merge.errors import EvaluationError
from nan_merge.hub import resolve_folder
from pipelines.extras import require

POLL_SECONDS = 0.5


def serve_command(
    model: str,
    console: Console,
    *,
    log: Path,
    name: str | None,
    port: int,
    dtype: str,
    tensor_parallel: int,
    max_length: int | None,
) -> None:
    """Serve a checkpoint on 127.0.0.1 and wait; for arguments see `evaluators.serve.serve_model`.

    Raises:
        EvaluationError: If the server does not start, or ends by itself.
    """
    require(["vllm"])
    folder = resolve_folder(model)
    check_servable(folder, port)
    console.print("Starting the server; this takes a minute or two ...", highlight=False)
    served = serve_model(
        folder,
        log,
        name=name,
        port=port,
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        max_length=max_length,
    )
    with served as endpoint:
        console.print(
            f"{endpoint.model} answers at {endpoint.url}; Ctrl-C ends it. Its output: {log}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        try:
            while endpoint.process.poll() is None:
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # how it is meant to end
            console.print("\nThe server ends.", highlight=False)
            return
        raise EvaluationError(f"The server has ended by itself; {log} says why.")
