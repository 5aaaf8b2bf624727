"""MMLU by likelihood against lm-evaluation-harness, sample by sample, and bfloat16 against float32.

The questions are real ones that the package lm-eval carries, two of each of the 50 subjects with
the shortest prompts, each after two solved examples; the model is SmolLM2-135M-Instruct. Both sides
get the same text; the harness' `hf` backend runs in a process of its own, of the interpreter that
NAN_MERGE_LM_EVAL names or else of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from evaluators.language_evaluation import (
    LanguageModelOptions,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.rendering import load_tokenizer, prompt_text, wording_of
from evaluators.samples import Sample
from pipelines.language_benchmarks import find_profile
from tests.language_checkpoints import HAS_SMOLLM2, smollm2
from tests.table2_data import write_mmlu

ROOT = Path(__file__).parents[2]
PROFILE = find_profile("mmlu", "oc-ppl")
# Natural logarithms in float32; both sides sum in another order and pad to other lengths.
TOLERANCE = 1e-3
# bfloat16 keeps 8 bits: logits of 16 to 32, as these are, are 0.125 apart, and two of them differ.
NEAR_TIE = 0.25
NUM_IN_BFLOAT16 = 30
NUM_SUBJECTS = 50
NUM_SHOTS = 2  # of the profile's five, to save minutes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        find_spec("lm_eval") is None or not HAS_SMOLLM2,
        reason="lm-eval or SmolLM2-135M is not installed (requirements/peers.txt)",
    ),
]


@dataclass(frozen=True)
class Choice:
    """What a side chose among A to D, and its four log-probabilities."""

    place: int
    values: tuple[float, ...]

    @property
    def lead(self) -> float:
        """How far the chosen one is ahead of the next."""
        first, second = sorted(self.values)[:-3:-1]
        return first - second


def choice(values: Sequence[float | None]) -> Choice:
    known = tuple(value for value in values if value is not None)
    assert len(known) == len(values) == 4
    return Choice(known.index(max(known)), known)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("data")
    write_mmlu(folder, num_asked=2)
    found = [replace(each, shots=each.shots[:NUM_SHOTS]) for each in PROFILE.samples(folder)]
    length = {
        sample.subset: sum(map(len, (*sample.shots, sample.question)))  # pyright: ignore[reportArgumentType]
        for sample in found
    }
    shortest = set(sorted(length, key=lambda subset: length[subset])[:NUM_SUBJECTS])
    return [sample for sample in found if sample.subset in shortest]


def our_choices(samples: Sequence[Sample], dtype: str) -> dict[str, Choice]:
    options = LanguageModelOptions("transformers", dtype, device="cpu")  # pyright: ignore[reportArgumentType]
    opened = open_language_model(str(smollm2()), options)
    try:
        answers = [
            answer
            for shard in language_shards(PROFILE, samples)
            for answer in answer_shard(opened, shard)
        ]
    finally:
        opened.close()
    assert all(answer.num_dropped_shots == 0 for answer in answers)
    return {answer.sample_id: choice(answer.log_probabilities) for answer in answers}


@pytest.fixture(scope="module")
def ours(samples: list[Sample]) -> dict[str, Choice]:
    return our_choices(samples, "float32")


def test_choices_in_float32_are_those_of_the_harness(samples, ours, tmp_path):
    assert len(samples) == 2 * NUM_SUBJECTS
    tokenizer, wording = load_tokenizer(smollm2()), wording_of(PROFILE, False)
    texts = [prompt_text(tokenizer, each, wording, len(each.shots)) for each in samples]
    job = {
        "model": str(smollm2()),
        "dtype": "float32",
        "batch_size": 4,
        "choices": list(samples[0].choices),
        "samples": [{"lead": "", "question": text} for text in texts],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    python = os.environ.get("NAN_MERGE_LM_EVAL", sys.executable)
    command = [python, str(ROOT / "benchmarks/lm_eval_side.py"), str(tmp_path / "job.json")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told = next(line for line in done.stdout.splitlines() if line.startswith('{"seconds"'))
    theirs = [choice(values) for values in json.loads(told)["log_likelihoods"]]
    for sample, other in zip(samples, theirs, strict=True):
        own = ours[sample.id]
        assert own.values == pytest.approx(other.values, abs=TOLERANCE), sample.id
        # Where the best two are nearer than rounding, neither side's choice means anything.
        assert own.place == other.place or other.lead < TOLERANCE, sample.id
    right = [
        sum(s.labels[c.place] == s.gold for s, c in zip(samples, side, strict=True))
        for side in ([ours[each.id] for each in samples], theirs)
    ]
    print(f"right of {len(samples)}: ours {right[0]}, lm-eval's {right[1]}")
    assert right[0] == right[1]


def test_choices_that_bfloat16_changes_were_near_ties(samples, ours):
    some = samples[:NUM_IN_BFLOAT16]
    changed = {
        sample_id: found
        for sample_id, found in our_choices(some, "bfloat16").items()
        if found.place != ours[sample_id].place
    }
    for sample_id, found in changed.items():
        exact = ours[sample_id].values
        gap = max(exact) - exact[found.place]
        print(f"{sample_id}: in float32 {gap:.3f} ahead of what bfloat16 chose")
        assert gap < NEAR_TIE, sample_id
    leads = sorted(ours[each.id].lead for each in some)
    middle = leads[len(leads) // 2]
    print(f"{len(changed)} of {len(some)} changed; median lead in float32 {middle:.3f}")
    # A bound that most samples would meet anyway would show nothing.
    assert sum(lead > NEAR_TIE for lead in leads) > 2 * len(changed)
