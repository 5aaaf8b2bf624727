"""Benchmarks of language models: how each reads its data and asks its questions."""

from __future__ import annotations

from evaluators.benchmarks import bbh, ceval, gsm8k, mmlu
from evaluators.profiles import Profile

PROFILES: dict[tuple[str, str], Profile] = {
    (profile.benchmark, profile.name): profile
    for profile in (*mmlu.PROFILES, *ceval.PROFILES, *bbh.PROFILES, *gsm8k.PROFILES)
}
"""Every profile by the names of its benchmark and its own."""
