"""Whose protocols the profiles follow, and at which commits they were read."""

from __future__ import annotations

from evaluators.profiles import Upstream


def opencompass(file: str) -> Upstream:
    """A configuration of OpenCompass."""
    return Upstream("open-compass/opencompass", file, "a5acc4bba3b658f151617a3b393602110fb7a740")


def qwen_math(file: str) -> Upstream:
    """A file of the evaluation toolkit of Qwen2.5-Math."""
    return Upstream("QwenLM/Qwen2.5-Math", file, "a45202bd16f1ec06f433442dc1152d0074773465")
