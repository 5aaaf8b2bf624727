"""The small twin of Table 3, end to end through the command, on questions about drawn squares.

A LLaVA of less than a million weights is trained here from nothing, fine-tuned on two skills,
merged in the paper's two ways and asked the paper's four benchmarks. What is right is counted here
from the data and the stored answers, by no scorer, and compared with chance by exact tests: a
model that does not see is right once in four, whatever it writes, for every right option is drawn.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from math import comb
from pathlib import Path
from typing import Any

import pytest

from evaluators.training.drawn_questions import OPTIONS, QUESTIONS, write_drawn_benchmarks
from nan_merge.yaml_config import load_config
from pipelines.config import PRETRAINED, RunConfig
from pipelines.results import RunResults, read_results
from pipelines.run_folder import folder_names
from tests.report_tables import assert_papers_table
from tests.table3_data import NUM_SAMPLES, SEED

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "configs/twins/table3_llava_mini.yaml"
NUM_ASKED = {
    "mathvista": NUM_SAMPLES,
    "wemath": 3 * NUM_SAMPLES,
    "ai2d": NUM_SAMPLES,
    "geoqa": NUM_SAMPLES,
}
TUNED = {"placing": "place", "counting": "count"}
CHANCE = 4  # one option of so many
NEVER = 1e-6  # how often chance may do as well

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("transformers", "PIL", "ray")),
        reason="needs transformers, Pillow and ray",
    ),
]


@dataclass(frozen=True)
class Asked:
    """One drawn question: what it asks for, and what a right answer states."""

    skill: str
    gold: str


@dataclass(frozen=True)
class Twin:
    """The finished run."""

    folder: Path
    cache: Path
    data: Path
    config: RunConfig
    results: RunResults

    @cached_property
    def questions(self) -> dict[str, Asked]:
        """Sample id -> question, read from the data."""
        return {
            **self._json("mathvista", "pid"),
            **self._json("wemath", "key"),
            **self._table("ai2d/AI2D_TEST.tsv"),
            **self._table("geoqa/geoqa_test.tsv"),
        }

    def _json(self, benchmark: str, key: str) -> dict[str, Asked]:
        content: Any = json.loads((self.data / benchmark / "testmini.json").read_text())
        found: dict[str, Asked] = {}
        for record in content.values() if isinstance(content, dict) else content:
            skill, gold = skill_in(record["question"]), record["answer"]
            if record.get("choices"):
                gold = "ABCD"[record["choices"].index(gold)]
            problem = f"{record['ID']}/" if "ID" in record else ""
            found[f"{benchmark}/{problem}{record[key]}"] = Asked(skill, gold)
        return found

    def _table(self, name: str) -> dict[str, Asked]:
        csv.field_size_limit(1 << 24)
        with (self.data / name).open(newline="") as file:
            return {
                f"{name.partition('/')[0]}/{row['index']}": Asked(
                    skill_in(row["question"]), row["answer"]
                )
                for row in csv.DictReader(file, delimiter="\t")
            }

    def right(self, model: str, benchmark: str) -> dict[str, bool]:
        """Sample id -> whether the model's stored answer is right."""
        folder = self.folder / "predictions" / folder_names(self.results.models())[model]
        (path,) = folder.glob(f"{benchmark}.*.jsonl")
        answers = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        return {
            each["sample_id"]: stated(each["completion"]) == self.questions[each["sample_id"]].gold
            for each in answers
        }

    def right_by_skill(self, model: str, skill: str) -> dict[str, bool]:
        """The same for the questions of all benchmarks that ask for a skill."""
        every = {
            sample: value
            for benchmark in NUM_ASKED
            for sample, value in self.right(model, benchmark).items()
        }
        return {s: value for s, value in every.items() if self.questions[s].skill == skill}

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Model -> checkpoint folder."""
        (base,) = self.cache.glob("llava-mini-*")
        tuned = {path.name: path for path in self.cache.glob("fine-tunes-*/*")}
        merged = {each.model: self.folder / each.folder for each in self.results.merges}
        return {PRETRAINED: base, **tuned, **merged}


def skill_in(text: str) -> str:
    (skill,) = (skill for skill, words in QUESTIONS.items() if words in text)
    return skill


def stated(completion: str) -> str | None:
    """The last letter or number that stands alone in an answer."""
    found = re.findall(r"\b([A-D]|[1-4])\b", completion)
    return found[-1] if found else None


def chance_of(right: Sequence[bool]) -> float:
    """How often guessing would do at least as well: the tail of the binomial distribution."""
    n, k = len(right), sum(right)
    ways = sum(comb(n, each) * (CHANCE - 1) ** (n - each) for each in range(k, n + 1))
    return ways / CHANCE**n


def chance_of_difference(one: dict[str, bool], other: dict[str, bool]) -> float:
    """The exact sign test on samples that one answers right and the other wrong, one-sided."""
    won = sum(one[sample] and not other[sample] for sample in one)
    lost = sum(other[sample] and not one[sample] for sample in one)
    return sum(comb(won + lost, each) for each in range(won, won + lost + 1)) / 2 ** (won + lost)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    folder = tmp_path_factory.mktemp("table3")
    write_drawn_benchmarks(folder / "data", NUM_SAMPLES, SEED)
    changes = [f"run_folder={folder / 'run'}", f"cache={folder / 'cache'}",
               f"evaluate.data={folder / 'data'}", "track.mlflow=false"]  # fmt: skip
    command = [sys.executable, "-m", "pipelines.cli", "run", str(TWIN), *changes]
    subprocess.run(command, check=True, cwd=ROOT)
    config = load_config(TWIN, RunConfig, changes)
    results = read_results(folder / "run")
    return Twin(folder / "run", folder / "cache", folder / "data", config, results)


def test_guessing_is_told_from_seeing():
    assert chance_of([True] * 25 + [False] * 75) > 0.5
    assert chance_of([True] * 50 + [False] * 50) < NEVER
    assert chance_of([True]) == 0.25


def test_every_model_has_one_row_whose_scores_are_what_was_answered_right(twin):
    merges = [merge.name for merge in twin.config.merges]
    assert twin.results.models() == [PRETRAINED, *TUNED, *merges]
    assert twin.results.benchmarks() == list(NUM_ASKED)
    for model in twin.results.models():
        for benchmark, num_asked in NUM_ASKED.items():
            row = twin.results.row(model, benchmark)
            right = twin.right(model, benchmark)
            assert row is not None and row.num_samples == len(right) == num_asked
            assert row.value == pytest.approx(sum(right.values()) / num_asked)


@pytest.mark.parametrize("benchmark", list(NUM_ASKED))
def test_base_and_merges_see(twin, benchmark):
    for model in (PRETRAINED, *(merge.name for merge in twin.config.merges)):
        assert chance_of(list(twin.right(model, benchmark).values())) < NEVER, model


def test_letters_and_numbers_are_both_answered(twin):
    merges = [merge.name for merge in twin.config.merges]
    for gold, models in (("ABCD", [PRETRAINED, *TUNED, *merges]), ("1234", ["counting", *merges])):
        for model in models:
            answered = twin.right(model, "mathvista").items()
            right = [value for sample, value in answered if twin.questions[sample].gold in gold]
            assert len(right) == NUM_SAMPLES // 2
            assert chance_of(right) < NEVER, (model, gold)


@pytest.mark.parametrize(("model", "skill"), list(TUNED.items()))
def test_each_fine_tune_is_best_at_its_skill(twin, model, skill):
    own = twin.right_by_skill(model, skill)
    assert len(own) >= NUM_SAMPLES
    assert chance_of(list(own.values())) < NEVER
    for other in (PRETRAINED, *(name for name in TUNED if name != model)):
        assert chance_of_difference(own, twin.right_by_skill(other, skill)) < 0.01, other


def test_merges_are_what_the_run_file_says(twin):
    from safetensors.numpy import load_file

    tensors = {name: load_file(path / "model.safetensors") for name, path in
               twin.checkpoints.items()}  # fmt: skip
    base = tensors[PRETRAINED]
    assert any(name.startswith("vision_tower.") for name in base)
    for merge in twin.results.merges:
        assert list(merge.coefficients) == list(TUNED)
        if merge.norms:
            inverse = {model: 1 / norm for model, norm in merge.norms.items()}
            for model, value in merge.coefficients.items():  # m/2 = 1 for two models
                assert value == pytest.approx(inverse[model] / sum(inverse.values()), rel=1e-6)
            for model, norm in merge.norms.items():
                squares = sum(float((t.astype(float) ** 2).sum()) for t in tensors[model].values())
                assert norm == pytest.approx(squares**0.5, rel=1e-6)
        else:
            assert set(merge.coefficients.values()) == {0.5}
        assert tensors[merge.model].keys() == base.keys()
        for name, own in base.items():
            changes = [
                merge.coefficients[model] * (tensors[model][name].astype(float) - own)
                for model in TUNED
            ]
            found = tensors[merge.model][name]
            assert abs(found - (own + sum(changes))).max() < 1e-6, name


def test_the_report_shows_the_papers_table_beside_its_numbers(twin):
    published = twin.config.published
    assert list(published.columns) == list(NUM_ASKED)
    assert list(published.columns.values()) == ["MathVista", "WeMath", "AI2D", "GeoQA"]
    assert_papers_table(twin.folder, twin.results, published)


def test_options_are_as_many_as_chance_says():
    assert {len(options) for options in OPTIONS.values()} == {CHANCE}
