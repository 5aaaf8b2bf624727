"""Work on language models whose engine ends where a trap says so.

A file ``MODEL-SHARD`` in the folder that ``NAN_MERGE_TEST_TRAPS`` names says what happens before
that shard is answered: once, or with "always" each time. Every load and answer is logged there.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from evaluators.answers import Answer
from evaluators.language_evaluation import (
    LanguageModelOptions,
    LanguageShard,
    OpenLanguageModel,
    answer_shard,
    open_language_model,
)
from nan_merge.errors import EngineDiedError

TRAPS = "NAN_MERGE_TEST_TRAPS"
_ENDED: list[OpenLanguageModel] = []
"""Models of this process whose engine is gone: whatever else was handed to them fails too."""


def open_logged(folder: str, options: LanguageModelOptions) -> OpenLanguageModel:
    _log(f"{Path(folder).name}-load")
    return open_language_model(folder, options)


def answer_or_die(opened: OpenLanguageModel, shard: LanguageShard) -> list[Answer]:
    name = f"{opened.folder.name}-{shard.number}"
    trap = Path(os.environ[TRAPS]) / name
    action = trap.read_text() if trap.exists() else ""
    if action and "always" not in action:
        trap.unlink()
    if "raise" in action:
        _ENDED.append(opened)
    if any(opened is one for one in _ENDED):
        raise EngineDiedError("vLLM ended while it worked:\nRuntimeError: a core fell off")
    if "kill" in action:
        for process in psutil.Process().children(recursive=True):
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
    answers = answer_shard(opened, shard)
    _log(name)
    return answers


def _log(line: str) -> None:
    with (Path(os.environ[TRAPS]) / "log").open("a") as file:
        file.write(f"{line}\n")
