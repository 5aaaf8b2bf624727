"""Open a language benchmark: its profile, its samples, and which of them are asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.profiles import Profile
from evaluators.samples import Message, Piece, Sample
from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError, DataError
from pipelines.language_config import BenchmarkSpec

DATA_VARIABLE = "NAN_MERGE_DATA"
OWN_ENGINE = "nan-merge"


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark as it is asked in one evaluation.

    Attributes:
        named: Its name, or the file that describes it, as it was asked for.
        profile: How it is asked and scored.
        folder: Of its data.
        samples: All of them, in the order of the data.
        asked: Ids of those that are asked.
        digest: Of all samples, gold answers included; sha256 in hexadecimal.
        uses_chat_template: Whether the model's chat template is applied.
        engine: Whose program asks and scores: "nan-merge", or a harness that is run as it is.
    """

    named: str
    profile: Profile
    folder: Path
    samples: tuple[Sample, ...]
    asked: frozenset[str]
    digest: str
    uses_chat_template: bool
    engine: str = OWN_ENGINE

    @property
    def name(self) -> str:
        """Of benchmark and profile together, unique in an evaluation."""
        return f"{self.profile.benchmark}/{self.profile.name}"


def language_benchmark_names() -> list[str]:
    """Names of all language benchmarks that have profiles."""
    from evaluators.benchmarks import PROFILES

    return list(dict.fromkeys(benchmark for benchmark, _ in PROFILES))


def find_profile(name: str, profile: str | None) -> Profile:
    """A profile by the names of its benchmark and itself; the benchmark's first if unnamed.

    Raises:
        ConfigError: If there is no such benchmark or profile; the message lists what there is.
    """
    from evaluators.benchmarks import PROFILES

    if is_own_benchmark(name):
        return _own_profile(Path(name), profile)
    known = [each for benchmark, each in PROFILES if benchmark == name]
    if not known:
        names = language_benchmark_names()
        near = did_you_mean(name, names, ".")
        raise ConfigError(f"No benchmark is called {name!r}, have {', '.join(names)}{near}")
    found = PROFILES.get((name, profile or known[0]))
    if found is None:
        near = did_you_mean(profile or "", known, ".")
        raise ConfigError(f"{name} has no profile {profile!r}, have {', '.join(known)}{near}")
    return found


def open_benchmark(spec: BenchmarkSpec, data: Path | None = None) -> OpenBenchmark:
    """Read a benchmark's data and choose what is asked.

    Args:
        spec: Which benchmark, and how.
        data: Where its data is if the spec does not say.

    Raises:
        ConfigError: If the benchmark, the profile or a subset is unknown, or no folder is named.
        DataError: If data is missing or damaged.
    """
    profile = _with_most_tokens(find_profile(spec.name, spec.profile), spec.max_tokens)
    folder = folder_of(spec, profile, data)
    samples = tuple(profile.samples(folder))
    chat = profile.uses_chat_template if spec.chat_template is None else spec.chat_template
    return OpenBenchmark(
        named=str(Path(spec.name).absolute()) if is_own_benchmark(spec.name) else spec.name,
        profile=profile,
        folder=folder,
        samples=samples,
        asked=_asked(profile, samples, spec),
        digest=samples_digest(samples),
        uses_chat_template=chat,
    )


def folder_of(spec: BenchmarkSpec, profile: Profile, data: Path | None = None) -> Path:
    """Where a benchmark's data lies; for arguments and errors see `open_benchmark`."""
    return data_folder(profile.benchmark, spec.data or data or _own_folder(spec.name))


def data_folder(benchmark: str, data: Path | None) -> Path:
    """Where a benchmark's data lies: ``DATA/BENCHMARK``, or ``DATA`` itself.

    Raises:
        ConfigError: If no folder was named, neither here nor by ``$NAN_MERGE_DATA``.
        DataError: If it is not there.
    """
    folder = named_folder(data)
    if folder is None:
        raise ConfigError(
            f"Where is the data of {benchmark}? Name its folder with --data (or `data:` in a run "
            f"file), or set {DATA_VARIABLE}. `nan-merge data fetch {benchmark} DIR` gets it where "
            "there is a hub."
        )
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} with the data of {benchmark}.")
    names = (benchmark, benchmark.removesuffix("-test"))  # another split of the same data
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def named_folder(data: Path | None) -> Path | None:
    """The folder of data that was named: here, or by ``$NAN_MERGE_DATA``."""
    if data is None and os.environ.get(DATA_VARIABLE):
        return Path(os.environ[DATA_VARIABLE])
    return data


def samples_digest(samples: Sequence[Sample]) -> str:
    """Hash of everything that samples ask and expect; sha256 in hexadecimal."""
    digest = hashlib.sha256()
    shots_digests: dict[int, str] = {}  # thousands of samples share their solved examples
    for sample in samples:
        shots = shots_digests.get(id(sample.shots))
        if shots is None:
            text = json.dumps([_plain(each) for each in sample.shots])
            shots = shots_digests[id(sample.shots)] = hashlib.sha256(text.encode()).hexdigest()
        content = [
            sample.id,
            sample.cluster_id,
            sample.subset,
            _plain(sample.lead),
            shots,
            _plain(sample.question),
            sample.choices,
            sample.labels,
            sample.gold,
        ]
        if sample.images:
            content += [
                [each.digest for each in sample.images],
                sample.options,
                sample.answer_format,
            ]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _plain(piece: Piece) -> object:
    return piece if isinstance(piece, str) else [_plain_message(each) for each in piece]


def _plain_message(message: Message) -> list[object]:
    plain: list[object] = [message.role, message.content]
    return [*plain, message.num_images] if message.num_images else plain


def _asked(profile: Profile, samples: Sequence[Sample], spec: BenchmarkSpec) -> frozenset[str]:
    unknown = [name for name in spec.subsets if name not in profile.subsets]
    if unknown:
        raise ConfigError(
            f"{profile.benchmark} has no subset {unknown[0]!r}, have "
            f"{', '.join(profile.subsets)}{did_you_mean(unknown[0], profile.subsets, '.')}"
        )
    counts: dict[str, int] = {}
    asked: list[str] = []
    for sample in samples:
        if spec.subsets and sample.subset not in spec.subsets:
            continue
        counts[sample.subset] = counts.get(sample.subset, 0) + 1
        if spec.limit is None or counts[sample.subset] <= spec.limit:
            asked.append(sample.id)
    return frozenset(asked)


def _with_most_tokens(profile: Profile, max_tokens: int | None) -> Profile:
    if max_tokens is None or profile.decoding is None:
        return profile
    most = min(max_tokens, profile.decoding.max_tokens)
    return replace(profile, decoding=replace(profile.decoding, max_tokens=most))


def is_own_benchmark(name: str) -> bool:
    """Whether a benchmark's name is that of a YAML file which describes one."""
    return name.endswith((".yaml", ".yml"))


def _own_folder(name: str) -> Path | None:
    """Where the tables of a benchmark of one's own lie if nothing is said: beside its file."""
    return (
        Path(name).parent if is_own_benchmark(name) and not os.environ.get(DATA_VARIABLE) else None
    )


def _own_profile(path: Path, profile: str | None) -> Profile:
    from evaluators.custom_benchmark import load_benchmark

    found = load_benchmark(path)
    if profile not in (None, found.name):
        raise ConfigError(f"{path} has no profile {profile!r}; a benchmark of one's own has one.")
    return found
