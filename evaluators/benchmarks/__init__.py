"""Benchmarks of language models, some of which see: how each reads its data and asks."""

from __future__ import annotations

from evaluators.benchmarks import ai2d, bbh, ceval, geoqa, gsm8k, mathvista, mmlu, wemath
from evaluators.profiles import Profile

PROFILES: dict[tuple[str, str], Profile] = {
    (profile.benchmark, profile.name): profile
    for module in (mmlu, ceval, bbh, gsm8k, mathvista, wemath, ai2d, geoqa)
    for profile in module.PROFILES
}
"""Every profile by the names of its benchmark and its own."""
