"""What OpenCompass can ask through a server's chat, and what its scores are called here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from evaluators.benchmarks import PROFILES
from evaluators.opencompass_config import PREFIXES
from evaluators.profiles import Profile
from evaluators.samples import Sample
from nan_merge.errors import ConfigError
from pipelines.language_benchmarks import OpenBenchmark, find_profile
from pipelines.language_config import BenchmarkSpec

ENGINE = "opencompass"
REPOSITORY = "open-compass/opencompass"


def for_opencompass(spec: BenchmarkSpec) -> BenchmarkSpec:
    """A benchmark with the profile that OpenCompass is to follow; the first that it can if unnamed.

    Raises:
        ConfigError: If it cannot, with the reason.
    """
    named = find_profile(spec.name, spec.profile)
    able = [
        profile.name
        for (benchmark, _), profile in PROFILES.items()
        if benchmark == named.benchmark and not _why_not(profile)
    ]
    if spec.profile is None and able:
        named = find_profile(spec.name, able[0])
    why = _why_not(named)
    if not why and spec.chat_template is False:
        why = "it asks a server's chat, which always applies the model's chat template"
    if why:
        have = f" Of {named.benchmark} it can ask {', '.join(able)}." if able else ""
        raise ConfigError(
            f"engine: opencompass cannot ask {named.benchmark}/{named.name}: {why}.{have} "
            "engine: nan-merge asks all profiles."
        )
    return spec.model_copy(update={"profile": named.name})


def _why_not(profile: Profile) -> str:
    if profile.upstream.repository != REPOSITORY:
        return f"the protocol is that of {profile.upstream.repository or 'a file of yours'}"
    if profile.decoding is None:
        return (
            "it compares likelihoods of choices, and a server's chat gives none of given text "
            "(OpenCompass' own class for such servers refuses it, too)"
        )
    if not profile.uses_chat_template:
        return "it is asked as plain text, and a server's chat applies the model's chat template"
    if profile.benchmark not in PREFIXES:
        return "OpenCompass' configuration has no such split"
    return ""


def asked_by_opencompass(benchmark: OpenBenchmark) -> OpenBenchmark:
    """The same questions, asked by OpenCompass: under a name of their own.

    Raises:
        ConfigError: If not the first samples of each subset are asked.
    """
    for subset, samples in asked_by_subset(benchmark).items():
        first = [each.id for each in benchmark.samples if each.subset == subset][: len(samples)]
        if first != [each.id for each in samples]:
            raise ConfigError(
                f"engine: opencompass asks the first samples of a subset, and of {subset} others "
                "are wanted. Use engine: nan-merge."
            )
    config = PurePosixPath(benchmark.profile.upstream.file).stem
    profile = replace(benchmark.profile, name=f"{ENGINE}:{config}")
    return replace(benchmark, profile=profile, engine=ENGINE)


def asked_by_subset(benchmark: OpenBenchmark) -> dict[str, list[Sample]]:
    """The samples that are asked, in the order of the data."""
    found: dict[str, list[Sample]] = {}
    for sample in benchmark.samples:
        if sample.id in benchmark.asked:
            found.setdefault(sample.subset, []).append(sample)
    return found
