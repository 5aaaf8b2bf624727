"""We-Math testmini (Qiao et al., arXiv 2407.01284): 525 problems, each asked whole and in steps.

Layouts of the data: ``testmini.json`` with the folders that its ``image_path`` names; the hub's
``testmini-*.parquet``; VLMEvalKit's ``WeMath.tsv``. The last option is "No correct answer"; there
are 3 to 7 of them. Some option strings are malformed, so they are asked as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluators.benchmarks.picture_questions import (
    LETTERS,
    gold_label,
    listed_texts,
    options_of,
    picture_sample,
    refuse_repeated,
    share_of,
)
from evaluators.benchmarks.picture_tables import OnPicture, PictureRow, find_file, read_picture_rows
from evaluators.benchmarks.upstreams import wemath
from evaluators.benchmarks.wemath_domains import domain_scores, domain_tags, read_domains
from evaluators.benchmarks.wemath_measures import (
    MULTI,
    four_dimensions,
    problem_scores,
    problems_of,
)
from evaluators.extraction_pictures import chosen_label, wemath_option
from evaluators.pictures import open_header
from evaluators.profiles import Decoding, Judged, Profile
from evaluators.samples import Sample
from evaluators.scorers import chosen_option
from evaluators.scores import Score
from nan_merge.errors import DataError

BENCHMARK = "wemath"
FILES = ("testmini.json", "testmini-*.parquet", "WeMath.tsv")
NUM_SAMPLES = 1_740
NUM_PROBLEMS = 525
KEYS = ("2steps_1", "2steps_2", "2steps_multi", "3steps_1", "3steps_2", "3steps_3", "3steps_multi")
_PARTS = {
    "S1, one step": tuple(key for key in KEYS if not key.endswith(MULTI)),
    "S2, two steps": (f"2steps_{MULTI}",),
    "S3, three steps": (f"3steps_{MULTI}",),
}
_TASK = (
    "Now, we require you to solve a multiple-choice math question. Please briefly describe your "
    "thought process and provide the final answer(option)."
)
_FORMAT = (
    "Regarding the format, please answer following the template below, and be sure to include two "
    "<> symbols:\n<Thought process>: <<your thought process>> <Answer>: <<your option>>"
)


def read_rows(folder: Path, check: OnPicture = open_header) -> list[PictureRow]:
    """The questions of a data folder in one of its layouts.

    Args:
        folder: Of the data.
        check: Called with the place and the bytes of every picture.

    Raises:
        DataError: If there is none, or something in it is damaged.
    """
    return read_picture_rows(find_file(folder, FILES, BENCHMARK), "image_path", check)


def read_samples(folder: Path) -> list[Sample]:
    """Ask the questions as the authors do (README.md).

    Raises:
        DataError: As `read_rows`; if an answer is blank or no option, or a problem has one of its
            questions twice.
    """
    rows, domains = read_rows(folder), read_domains(folder)
    return refuse_repeated([_sample(row, domains) for row in rows], rows)


def parse_options(text: str) -> tuple[str, ...]:
    """The texts in an option string, "A. 1; B. 2;C.3": those of A, B, ... as far as they go.

    >>> parse_options("A. 1 cm; B. 2 cm;C.No correct answer")
    ('1 cm', '2 cm', 'No correct answer')
    """
    return listed_texts(text, r"(?:^|[;；]\s*|\s)([A-H])[.．、]", " ;；")


def measures(outcomes: Sequence[Judged]) -> dict[str, Score]:
    """Accuracy on steps, on whole problems and by domain; the four dimensions, strict and loose."""
    asked = {each.sample.tags[0] for each in outcomes}
    found = {
        name: share_of(name, outcomes, lambda sample, keys=keys: sample.tags[0] in keys)
        for name, keys in _PARTS.items()
        if not asked.isdisjoint(keys)
    }
    problems = problems_of(outcomes)
    return found | (four_dimensions(problems) if problems else {}) | domain_scores(outcomes)


def _sample(row: PictureRow, domains: dict[str, str]) -> Sample:
    raw = str(row.values.get("option") or "").strip()
    options = parse_options(raw) if raw else options_of(row)
    if not raw:  # VLMEvalKit's table has a column for each
        raw = "; ".join(f"{label}. {each}" for label, each in zip(LETTERS, options, strict=False))
    if len(options) < 2:  # malformed: the letters are known, their texts are not
        options = ("",) * max(5, LETTERS.find(row.text("answer").strip()) + 1)
    key, problem = row.text("key"), row.text("ID")
    if key not in KEYS:
        raise DataError(f"{row.place}: key {key!r} is none of {', '.join(KEYS)}")
    concept = str(row.values.get("knowledge concept") or "").strip()
    in_domain = () if key.endswith(MULTI) else domain_tags(concept, domains)
    prompt = f"{_TASK}\nQuestion: {row.text('question')}\nOption: {raw}\n{_FORMAT}"
    return picture_sample(
        row,
        benchmark=BENCHMARK,
        identity=f"{problem}/{key}",
        cluster=problem,
        prompt=prompt,
        gold=gold_label(row, options),
        options=options,
        tags=(key, *in_domain),
    )


PROFILES = (
    Profile(
        benchmark=BENCHMARK,
        name="wemath",
        upstream=wemath("README.md"),
        samples=read_samples,
        decoding=Decoding(1024),
        uses_chat_template=True,
        scorers={"compat": chosen_option(wemath_option), "strict": chosen_option(chosen_label)},
        subsets=(BENCHMARK,),
        measures=measures,
        problem_scores=problem_scores,
    ),
)
