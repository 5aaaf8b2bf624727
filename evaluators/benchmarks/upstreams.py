"""Whose protocols the profiles follow, and at which commits they were read."""

from __future__ import annotations

from evaluators.profiles import Upstream

MAX_TOKENS = 1024
"""Where a configuration of an OpenCompass benchmark leaves the length of answers to that of the
model: what it gives Llama 2 (opencompass/configs/models/hf_llama/hf_llama2_13b_chat.py)."""

USER_TURN_END = "\n"
"""OpenCompass' chat models expect a system's turn behind every user's, merge the empty one into
it with a line end, and so ask "...?\\n" (opencompass/models/huggingface_above_v4_33.py,
_get_meta_template; opencompass/models/base_api.py, parse_template)."""


def opencompass(file: str) -> Upstream:
    """A configuration of OpenCompass."""
    return Upstream("open-compass/opencompass", file, "a5acc4bba3b658f151617a3b393602110fb7a740")


def qwen_math(file: str) -> Upstream:
    """A file of the evaluation toolkit of Qwen2.5-Math."""
    return Upstream("QwenLM/Qwen2.5-Math", file, "a45202bd16f1ec06f433442dc1152d0074773465")


def vlmevalkit(file: str) -> Upstream:
    """A file of VLMEvalKit."""
    return Upstream("open-compass/VLMEvalKit", file, "e8e78f0")


def mathvista(file: str) -> Upstream:
    """A file of MathVista's authors."""
    return Upstream("lupantech/MathVista", file, "53d5258")


def wemath(file: str) -> Upstream:
    """A file of We-Math's authors."""
    return Upstream("We-Math/We-Math", file, "a57a0e8")


def gllava(file: str) -> Upstream:
    """A file of G-LLaVA, whose scoring of GeoQA the LLaVA models are measured by."""
    return Upstream("pipilurj/G-LLaVA", file, "daea277")
