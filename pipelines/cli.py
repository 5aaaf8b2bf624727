"""The command `nan-merge`. Its commands live in `pipelines/cli_*.py`, and errors in `cli_app`.

A new group of commands is a file beside these that decorates functions with `@app.command`, and
its name in the imports below, whose order is the order of `nan-merge --help`.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

from pipelines import cli_run, cli_finetune, cli_sweep, cli_submit, cli_merge, cli_evaluate  # isort: skip
from pipelines import cli_compare, cli_data, cli_track  # isort: skip
from pipelines.cli_app import app, explain_errors

__all__ = [
    "app",
    "cli_compare",
    "cli_data",
    "cli_evaluate",
    "cli_finetune",
    "cli_merge",
    "cli_run",
    "cli_submit",
    "cli_sweep",
    "cli_track",
    "main",
]


def main() -> None:
    """Entry point of the command; leaves by `SystemExit`."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows "?" for what it lacks; better that than no table.
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    with explain_errors(debug=False):
        app(prog_name="nan-merge")


if __name__ == "__main__":
    main()
