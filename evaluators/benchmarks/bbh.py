"""BIG-Bench Hard (Suzgun et al., arXiv 2210.09261): 27 tasks, 6,511 questions, three examples each.

Layout of the data: data/TASK.json, an object with a list of "examples" of "input" and "target",
and lib_prompt/TASK.txt, the solved examples; or, as the authors' repository has them, bbh/TASK.json
and cot-prompts/TASK.txt, whose first two lines are no part of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from evaluators.benchmarks.bbh_tasks import FREE_FORM, MULTIPLE_CHOICE, TASKS
from evaluators.benchmarks.files import check_subsets, read_json, read_text, text_field
from evaluators.benchmarks.questions import clusters
from evaluators.benchmarks.upstreams import USER_TURN_END, opencompass
from evaluators.extraction_bbh import (
    opencompass_choice,
    opencompass_choice_equal,
    opencompass_text,
    opencompass_text_equal,
    stated_choice,
    stated_choice_equal,
    stated_text,
    stated_text_equal,
)
from evaluators.profiles import Decoding, Profile
from evaluators.samples import Message, Piece, Sample
from evaluators.scorers import by_subset, written_label, written_text
from nan_merge.errors import DataError


def data_path(folder: Path, task: str) -> Path:
    """Where the questions of a task lie."""
    return folder / ("bbh" if (folder / "bbh").is_dir() else "data") / f"{task}.json"


def prompt_path(folder: Path, task: str) -> Path:
    """Where the solved examples of a task lie."""
    names = "cot-prompts" if (folder / "cot-prompts").is_dir() else "lib_prompt"
    return folder / names / f"{task}.txt"


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Input and target of the questions of a task.

    Raises:
        DataError: If the file is missing or damaged, or an input or target is blank.
    """
    content = read_json(path)
    examples = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list) or not examples:
        raise DataError(f'{path}: has no list of "examples"')
    found: list[tuple[str, str]] = []
    for number, example in enumerate(examples):
        place = f"{path}: examples[{number}]"
        if not isinstance(example, dict):
            raise DataError(f"{place}: expected an object with input and target")
        found.append((text_field(place, example, "input"), text_field(place, example, "target")))
    return found


def read_prompt(path: Path) -> str:
    """The solved examples of a task.

    Raises:
        DataError: If the file is missing, not UTF-8 or blank.
    """
    text = read_text(path).replace("\r\n", "\n")
    # The authors' files begin with a line that asks not to train on them, and a line of dashes.
    text = re.sub(r"\A.*canary.*\n-+\n", "", text)
    if not text.strip():
        raise DataError(f"{path}: is blank, expected solved examples")
    return text


def options(question: str) -> tuple[str, ...]:
    """The labels under which a question lists options."""
    return tuple(re.findall(r"^\(([A-Z])\)", question.partition("Options:")[2], re.MULTILINE))


def _reader(piece: Callable[[str], Piece]) -> Callable[[Path], list[Sample]]:
    def read(folder: Path) -> list[Sample]:
        check_subsets((data_path(folder, task) for task in TASKS), "bbh")
        check_subsets((prompt_path(folder, task) for task in TASKS), "bbh")
        return [sample for task in TASKS for sample in _task(folder, task, piece)]

    return read


def _task(folder: Path, task: str, piece: Callable[[str], Piece]) -> list[Sample]:
    prompt = read_prompt(prompt_path(folder, task))
    examples = read_examples(data_path(folder, task))
    hint = f"Follow the given examples and answer the question.\n{prompt}\n\nQ: "
    places = clusters(task, [question for question, _ in examples])
    return [
        Sample(
            id=f"{task}/{number}",
            cluster_id=cluster,
            subset=task,
            lead=piece(""),
            shots=(),
            question=piece(f"{hint}{question}\nA: Let's think step by step."),
            choices=(),
            labels=options(question) if task in MULTIPLE_CHOICE else (),
            gold=gold,
        )
        for number, ((question, gold), cluster) in enumerate(zip(examples, places, strict=True))
    ]


_COMPAT = by_subset(
    dict.fromkeys(MULTIPLE_CHOICE, written_text(opencompass_choice, opencompass_choice_equal))
    | dict.fromkeys(FREE_FORM, written_text(opencompass_text, opencompass_text_equal))
)
_STRICT = by_subset(
    dict.fromkeys(MULTIPLE_CHOICE, written_label(stated_choice, stated_choice_equal))
    | dict.fromkeys(FREE_FORM, written_text(stated_text, stated_text_equal))
)

PROFILES = (
    Profile(
        benchmark="bbh",
        name="oc-gen",
        upstream=opencompass("opencompass/configs/datasets/bbh/bbh_gen_5b92b0.py"),
        samples=_reader(lambda text: (Message("user", text),) if text else ()),
        decoding=Decoding(512),
        uses_chat_template=True,
        user_turn_end=USER_TURN_END,
        scorers={"compat": _COMPAT, "strict": _STRICT},
        subsets=TASKS,
    ),
    Profile(
        benchmark="bbh",
        name="oc-gen-base",
        upstream=opencompass("opencompass/configs/datasets/bbh/bbh_gen_98fba6.py"),
        samples=_reader(lambda text: text),
        decoding=Decoding(512, stop=("Q:",)),
        uses_chat_template=False,
        scorers={"compat": _COMPAT, "strict": _STRICT},
        subsets=TASKS,
    ),
)
