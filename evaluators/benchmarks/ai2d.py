"""AI2D (Kembhavi et al., arXiv 1603.07396), test: 3,088 questions about diagrams, four options.

Layouts of the data: VLMEvalKit's ``AI2D_TEST.tsv``, and the hub's ``test-*.parquet`` of lmms-lab.
Labels in the diagrams are masked by letters; the version without masks is another, easier
benchmark, and is refused. Options may be single letters themselves.
"""

from __future__ import annotations

from pathlib import Path

from evaluators.benchmarks.picture_questions import (
    LETTERS,
    by_tag,
    checked_options,
    gold_label,
    lines_of,
    options_of,
    picture_sample,
    refuse_repeated,
)
from evaluators.benchmarks.picture_tables import OnPicture, PictureRow, find_file, read_picture_rows
from evaluators.benchmarks.upstreams import vlmevalkit
from evaluators.extraction_pictures import chosen_label, vlmeval_option
from evaluators.pictures import open_header
from evaluators.profiles import Decoding, Profile, Scorer, ScorerName
from evaluators.samples import Sample
from evaluators.scorers import chosen_option
from nan_merge.errors import DataError

BENCHMARK = "ai2d"
FILES = ("AI2D_TEST.tsv", "test-*.parquet")
UNMASKED = "AI2D_TEST_NO_MASK.tsv"
NUM_SAMPLES = 3_088


def read_rows(folder: Path, check: OnPicture = open_header) -> list[PictureRow]:
    """The questions of a data folder in one of its layouts.

    Args:
        folder: Of the data.
        check: Called with the place and the bytes of every picture.

    Raises:
        DataError: If there is none, it is the version without masks, or something is damaged.
    """
    unmasked = (folder / UNMASKED).is_file()
    if unmasked and not any(True for pattern in FILES for _ in folder.glob(pattern)):
        raise DataError(
            f"{folder / UNMASKED}: its diagrams are not masked, which makes the questions easier; "
            f"scores do not compare with those on {FILES[0]}. Fetch that one."
        )
    return read_picture_rows(find_file(folder, FILES, BENCHMARK), "image", check)


def read_samples(folder: Path, form: str = "llava") -> list[Sample]:
    """Ask the questions in the words for LLaVA, or in VLMEvalKit's for models that it has none for.

    Raises:
        DataError: As `read_rows`; if an answer is blank or no option, or an id is there twice.
    """
    rows = read_rows(folder)
    return refuse_repeated([_sample(row, number, form) for number, row in enumerate(rows)], rows)


def llava_prompt(question: str, options: tuple[str, ...]) -> str:
    """What VLMEvalKit asks LLaVA (vlmeval/vlm/llava/llava.py)."""
    ending = "Answer with the option's letter from the given choices directly."
    return f"{question}\n{lines_of(options)}\n{ending}"


def vlmeval_prompt(question: str, options: tuple[str, ...]) -> str:
    """What VLMEvalKit asks by default (vlmeval/dataset/image_mcq.py)."""
    ending = "Please select the correct answer from the options above. "
    return f"Question: {question}\nOptions:\n{lines_of(options)}\n{ending}\n"


_FORMS = {"llava": llava_prompt, "vlmeval": vlmeval_prompt}


def _sample(row: PictureRow, number: int, form: str) -> Sample:
    listed = row.values.get("options")
    if isinstance(listed, list):  # the hub's: a list, and the right one's place in it
        options = checked_options(row, [str(each).strip() for each in listed])
        gold = _label_of_place(row, len(options))
    else:
        options = options_of(row)
        gold = gold_label(row, options)
    hint = row.text("hint", "")
    question = (f"{hint}\n" if hint else "") + row.text("question")
    category = row.text("category", "")
    return picture_sample(
        row,
        benchmark=BENCHMARK,
        identity=row.text("index", str(number)),
        # Of one diagram there are several questions.
        cluster=row.images[0].digest,
        prompt=_FORMS[form](question, options),
        gold=gold,
        options=options,
        tags=(f"category: {category}",) if category else (),
    )


def _label_of_place(row: PictureRow, num_options: int) -> str:
    gold = row.text("answer").strip()
    if gold in LETTERS[:num_options]:
        return gold
    if not gold.isdecimal() or int(gold) >= num_options:
        raise DataError(f"{row.place}: the answer is {gold!r}, expected a place from 0")
    return LETTERS[int(gold)]


_SCORERS: dict[ScorerName, Scorer] = {
    "compat": chosen_option(vlmeval_option),
    "strict": chosen_option(chosen_label),
}


def _profile(form: str, file: str) -> Profile:
    return Profile(
        benchmark=BENCHMARK,
        name=form,
        upstream=vlmevalkit(file),
        samples=lambda folder: read_samples(folder, form),
        decoding=Decoding(512),
        uses_chat_template=True,
        scorers=_SCORERS,
        subsets=(BENCHMARK,),
        measures=by_tag,
    )


PROFILES = (
    _profile("llava", "vlmeval/vlm/llava/llava.py"),
    _profile("vlmeval", "vlmeval/dataset/image_mcq.py"),
)
