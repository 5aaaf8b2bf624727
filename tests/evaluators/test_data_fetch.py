"""What a hub gives is written in the layouts that the benchmarks read."""

from pathlib import Path

import pytest

from evaluators.benchmarks import PROFILES
from evaluators.data_fetch import fetch_benchmark
from nan_merge.errors import ConfigError, DataError


def rows(repository: str, configuration: str, split: str) -> list[dict]:
    """Invented rows in the hub's forms."""
    if repository == "cais/mmlu":
        from evaluators.benchmarks.mmlu_subjects import SUBJECTS

        return [
            {"question": f"Q{n}?", "choices": list("wxyz"), "answer": n % 4, "subject": subject}
            for subject in SUBJECTS
            for n in range(5)
        ]
    if repository == "openai/gsm8k":
        return [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}]
    if repository == "lukaemon/bbh":
        return [{"input": "Q?\nOptions:\n(A) x\n(B) y", "target": "(A)"}]
    return [
        {"id": n, "question": f"问{n}", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "B"}
        | {"explanation": ""}
        for n in range(5)
    ]


def text(url: str) -> str:
    return f"notice\n-----\nQ: 1?\nA: So the answer is 1. {url[:5]}\n"


@pytest.mark.parametrize(
    ("benchmark", "profile", "number"),
    [
        ("mmlu", "oc-ppl", 285),
        ("ceval", "oc-ppl-base", 260),
        ("gsm8k", "oc", 1),
        ("bbh", "oc-gen", 27),
    ],
)
def test_fetched_data_is_read_by_the_profiles(tmp_path: Path, benchmark, profile, number):
    folder = fetch_benchmark(benchmark, tmp_path, rows, text)
    assert folder == tmp_path / benchmark
    assert len(PROFILES[benchmark, profile].samples(folder)) == number


def test_data_of_another_form_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="has another form"):
        fetch_benchmark("gsm8k", tmp_path, lambda *_: [{"problem": "?"}], text)
    assert not (tmp_path / "gsm8k").exists()


def test_an_unknown_benchmark_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'arc' cannot be fetched, have mmlu"):
        fetch_benchmark("arc", tmp_path, rows, text)
