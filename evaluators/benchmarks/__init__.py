"""Benchmarks of language and vision-language models: how each reads its data and asks its questions."""

from __future__ import annotations

from evaluators.benchmarks import ai2d, bbh, ceval, geoqa, gsm8k, mathvista, mmlu, wemath
from evaluators.profiles import Profile

PROFILES: dict[tuple[str, str], Profile] = {
    (profile.benchmark, profile.name): profile
    for profile in (
        *mmlu.PROFILES,
        *ceval.PROFILES,
        *bbh.PROFILES,
        *gsm8k.PROFILES,
        *mathvista.PROFILES,
        *wemath.PROFILES,
        *ai2d.PROFILES,
        *geoqa.PROFILES,
    )
}
"""Every profile by the names of its benchmark and its own."""
