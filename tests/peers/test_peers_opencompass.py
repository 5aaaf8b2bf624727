"""Our `oc-*` profiles against OpenCompass itself: prompts string for string, verdicts one by one.

The prompts are those of real questions (NAN_MERGE_DATA, a folder with mmlu, bbh and gsm8k in their
public layouts) and of C-Eval questions made here. OpenCompass is read from its own configuration
files; no model is run.
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.extraction import answer_pattern, first_capital, first_option
from evaluators.profiles import Profile
from evaluators.samples import Message, Piece, Sample
from tests.benchmark_folders import write_ceval
from tests.extraction_fixtures import BBH_CHOICES, BBH_TEXTS, LETTERS, NUMBERS

pytest.importorskip(
    "opencompass", reason="opencompass is not installed (requirements/opencompass.txt)"
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def data_folder() -> Path:
    folder = os.environ.get("NAN_MERGE_DATA", "")
    if not folder:
        pytest.skip("NAN_MERGE_DATA names no folder of benchmark data")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()


def upstream_datasets(profile: Profile) -> list[dict[str, Any]]:
    """What the configuration file that a profile names says about each of its subsets."""
    import opencompass
    from mmengine.config import Config

    root = Path(opencompass.__file__).parent.parent
    config = Config.fromfile(str(root / profile.upstream.file))
    return next(config[key] for key in config if key.endswith("_datasets"))


class Upstream:
    """One subset of one configuration, rendered by OpenCompass' own classes."""

    def __init__(self, config: Any, folder: Path) -> None:
        from opencompass.registry import ICL_PROMPT_TEMPLATES, ICL_RETRIEVERS, LOAD_DATASET

        reader = dict(config["reader_cfg"])
        arguments = {key: config[key] for key in ("name",) if key in config}
        dataset = LOAD_DATASET.build(
            {"type": config["type"], "path": str(folder), "reader_cfg": reader, **arguments}
        )
        infer = config["infer_cfg"]
        self.templates = {
            key: ICL_PROMPT_TEMPLATES.build(infer[key])
            for key in ("ice_template", "prompt_template")
            if key in infer
        }
        self.retriever = ICL_RETRIEVERS.build({**infer["retriever"], "dataset": dataset})
        self.gold = list(dataset.test[reader["output_column"]])
        self.examples = [
            self.retriever.generate_ice(each, self.templates.get("ice_template"))
            for each in self.retriever.retrieve()
        ]

    def likelihood_prompt(self, place: int, label: str) -> str:
        from opencompass.models.base import LMTemplateParser

        prompt = self.retriever.generate_label_prompt(
            place, self.examples[place], label, **self.templates
        )
        return LMTemplateParser().parse_template(prompt, mode="ppl")

    def written_prompts(self, place: int) -> tuple[str, list[tuple[str, str]]]:
        """Without and with a chat template."""
        from opencompass.models.base import LMTemplateParser
        from opencompass.models.huggingface_above_v4_33 import (
            _convert_chat_messages,
            _get_meta_template,
        )

        prompt = self.retriever.generate_prompt_for_generate_task(
            place, self.examples[place], **self.templates
        )
        turns = _get_meta_template(None).parse_template(prompt, mode="gen")
        (messages,) = _convert_chat_messages([turns])
        text = LMTemplateParser().parse_template(prompt, mode="gen")
        return text, [(each["role"], each["content"]) for each in messages]


def our_text(profile: Profile, sample: Sample) -> str:
    pieces = [sample.lead, *sample.shots, sample.question]
    if isinstance(sample.question, str):
        return "".join(text for text in pieces if isinstance(text, str))
    return profile.text_separator.join(each.content for each in our_messages(sample))


def our_messages(sample: Sample) -> list[Message]:
    pieces: list[Piece] = [sample.lead, *sample.shots, sample.question]
    return [each for piece in pieces if not isinstance(piece, str) for each in piece]


def by_subset(samples: list[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.subset, []).append(sample)
    return found


def compare(profile: Profile, folder: Path, upstream_folder: Path | None = None) -> int:
    """Compare all prompts of a profile; returns how many there were."""
    samples = by_subset(profile.samples(folder))
    configs = upstream_datasets(profile)
    if "test_split" in configs[0]["reader_cfg"]:
        split = "test" if profile.benchmark.endswith("-test") else "val"
        configs = [each for each in configs if each["reader_cfg"]["test_split"] == split]
    assert {each.get("name", "gsm8k") for each in configs} == set(samples) == set(profile.subsets)
    num_prompts = 0
    for config in configs:
        upstream = Upstream(config, upstream_folder or folder)
        ours = samples[config.get("name", "gsm8k")]
        assert len(ours) == len(upstream.gold)
        for place, sample in enumerate(ours):
            num_prompts += compare_sample(profile, sample, upstream, place)
    return num_prompts


def compare_sample(profile: Profile, sample: Sample, upstream: Upstream, place: int) -> int:
    if sample.choices:
        # One label would do for the prompt; another sees that nothing but the label changes.
        for label, choice in list(zip(sample.labels, sample.choices, strict=True))[place % 2 :: 2]:
            expected = upstream.likelihood_prompt(place, label)
            assert our_text(profile, sample) + choice == expected, sample.id
    else:
        text, messages = upstream.written_prompts(place)
        assert our_text(profile, sample) == text, sample.id
        if not isinstance(sample.question, str):
            ends = {"user": profile.user_turn_end, "assistant": "", "system": ""}
            ours = [(each.role, each.content + ends[each.role]) for each in our_messages(sample)]
            assert ours == messages, sample.id
    return 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oc-ppl", "oc-gen-5shot", "oc-gen-0shot"])
def test_mmlu_prompts_of_all_subjects(name: str, data_folder: Path):
    assert compare(PROFILES["mmlu", name], data_folder / "mmlu") == 14_042


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oc-gen", "oc-gen-base"])
def test_bbh_prompts_of_all_tasks(name: str, data_folder: Path):
    profile = PROFILES["bbh", name]
    assert compare(profile, data_folder / "bbh", data_folder / "bbh" / "data") == 6_511


def test_gsm8k_prompts(data_folder: Path, tmp_path: Path):
    content = (data_folder / "gsm8k" / "test.jsonl").read_bytes()
    for split in ("test", "train"):  # it wants both, and asks of the one
        (tmp_path / f"{split}.jsonl").write_bytes(content)
    assert compare(PROFILES["gsm8k", "oc"], tmp_path) == 1_319


# Upstream, the other two configurations have no test split.
@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("ceval", "oc-gen"),
        ("ceval", "oc-ppl"),
        ("ceval", "oc-ppl-base"),
        ("ceval-test", "oc-ppl-base"),
    ],
)
def test_ceval_prompts_of_all_subjects(benchmark: str, name: str, tmp_path: Path):
    profile = PROFILES[benchmark, name]
    write_ceval(tmp_path)
    assert compare(profile, tmp_path) == 2 * 52


WORDS = [
    *("A", "B", "C", "D", "(A)", "(B)", "(C).", "**D**", "a", "b", "E", "I", "boxed{B}"),
    *(
        "The answer is",
        "the answer is:",
        "So the answer is",
        "ANSWER:",
        "Answer :",
        "answer is not",
    ),
    *(
        "The correct answer is",
        "the correct option is:",
        "option",
        "1.",
        "10",
        "-3",
        "1,000",
        "4.5",
    ),
    *(
        "答案是",
        "答案：",
        "答案为",
        "故选",
        "选",
        "选项",
        "因此",
        "是",
        "所以",
        "正确",
        "是对",
        "。",
        "，",
    ),
    *("yes", "No", "True", "valid", "apple,", "Question:", "Q:", "\n", "\n\n", ".", ":", ",", "$"),
]


def completions() -> list[str]:
    """The fixtures', and random ones that hold what extractions look for."""
    draw = random.Random(0)
    drawn = [
        draw.choice(["", " "]).join(draw.choices(WORDS, k=draw.randint(1, 8)))
        for _ in range(20_000)
    ]
    fixed = [case.completion for case in (*LETTERS, *BBH_CHOICES, *BBH_TEXTS, *NUMBERS)]
    return fixed + drawn


def test_letters_are_those_of_opencompass():
    from opencompass.utils.text_postprocessors import (
        first_capital_postprocess,
        first_option_postprocess,
        match_answer_pattern,
    )

    for text in completions():
        ours = (first_option(text, "ABCD"), first_capital(text, "ABCD"), answer_pattern(text, ""))
        upstream = (
            first_option_postprocess(text, "ABCD"),
            first_capital_postprocess(text),
            match_answer_pattern(text, r"(?i)ANSWER\s*:\s*([A-D])"),
        )
        assert tuple(each or "" for each in ours) == upstream, text


def sample_of(subset: str, gold: str) -> Sample:
    return Sample("1", "1", subset, "", (), "", (), tuple("ABCD"), gold)


def our_verdicts(profile: Profile, subset: str, golds: list[str], texts: list[str]) -> list[bool]:
    return [
        profile.scorers["compat"](sample_of(subset, gold), Answer("1", "", text, "stop")).is_correct
        for gold, text in zip(golds, texts, strict=True)
    ]


def verdicts_of(evaluator: Any, predictions: list[str], golds: list[str]) -> list[bool]:
    result = evaluator.score(predictions, golds)
    return [each["correct"] for each in result["details"]]


def test_verdicts_on_bbh_are_those_of_opencompass():
    from opencompass.datasets.bbh import BBHEvaluator, BBHEvaluator_mcq, bbh_mcq_postprocess

    texts, draw = completions(), random.Random(1)
    golds = draw.choices(["(A)", "(B)", "Monsters, Inc", "rita, sue and bob poo"], k=len(texts))
    upstream = verdicts_of(
        BBHEvaluator_mcq(),
        list(map(bbh_mcq_postprocess, texts)),
        list(map(bbh_mcq_postprocess, golds)),
    )
    profile = PROFILES["bbh", "oc-gen"]
    assert our_verdicts(profile, "ruin_names", golds, texts) == upstream
    golds = draw.choices(
        ["Yes", "no", "True", "valid", "24", "-3", "a b", "apple", "} ]"], k=len(texts)
    )
    assert our_verdicts(profile, "navigate", golds, texts) == verdicts_of(
        BBHEvaluator(), texts, golds
    )
    assert 0 < sum(upstream) < len(texts)


def test_verdicts_on_gsm8k_are_those_of_opencompass():
    from opencompass.datasets.gsm8k import (
        Gsm8kEvaluator,
        gsm8k_dataset_postprocess,
        gsm8k_postprocess,
    )

    texts = completions()
    golds = random.Random(2).choices(["18", "-3", "1,000", "10", "4"], k=len(texts))
    upstream = verdicts_of(
        Gsm8kEvaluator(),
        list(map(gsm8k_postprocess, texts)),
        [gsm8k_dataset_postprocess(f"so\n#### {gold}") for gold in golds],
    )
    assert our_verdicts(PROFILES["gsm8k", "oc"], "gsm8k", golds, texts) == upstream
    assert 0 < sum(upstream) < len(texts)
