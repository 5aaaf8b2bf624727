"""Check benchmarks' data: is it whole, can every question be scored, and what is its digest?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from evaluators.benchmarks import PROFILES
from evaluators.profiles import Profile
from nan_merge.errors import DataError
from pipelines.language_benchmarks import language_benchmark_names, samples_digest
from pipelines.sheet import Cell, Line, Sheet, rich_table


def verify_command(folder: Path, console: Console) -> None:
    """Read every benchmark in a folder by each of its profiles, and print counts and digests.

    What profiles read is checked as it is read: files of all subsets, UTF-8, columns, blank and
    unknown answers. Ids must be unique.

    Raises:
        DataError: Every problem that was found, one a line; or if there is no benchmark.
    """
    found = [name for name in language_benchmark_names() if (folder / name).is_dir()]
    if not found:
        raise DataError(
            f"{folder} holds no folder of a benchmark ({', '.join(language_benchmark_names())})."
        )
    lines: list[Line] = []
    problems: list[str] = []
    for (benchmark, _), profile in PROFILES.items():
        if benchmark not in found:
            continue
        try:
            lines.append(_check(profile, folder / benchmark))
        except DataError as error:
            problems.append(f"{benchmark}/{profile.name}: {error}")
    columns = ("subsets", "samples", "fewest", "most", "digest")
    caption = "Fewest and most: samples of a subset. Digest: of all that is asked and expected."
    if lines:
        console.print(
            rich_table(Sheet(str(folder), "profile", columns, tuple(lines), caption), console.width)
        )
    if problems:
        raise DataError("\n".join(problems))


def _check(profile: Profile, folder: Path) -> Line:
    samples = profile.samples(folder)
    twice = [each for each, count in Counter(each.id for each in samples).items() if count > 1]
    if twice:
        raise DataError(f"{folder}: {len(twice)} ids come twice, the first is {twice[0]}")
    counts = Counter(sample.subset for sample in samples)
    cells = (
        f"{len(counts)}",
        f"{len(samples):,}",
        f"{min(counts.values()):,}",
        f"{max(counts.values()):,}",
        samples_digest(samples)[:16],
    )
    return Line(f"{profile.benchmark}/{profile.name}", tuple(Cell(text) for text in cells))
