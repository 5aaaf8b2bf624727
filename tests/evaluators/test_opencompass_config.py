"""What OpenCompass is told: which data sets, how many samples of each, and where everything is."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators.opencompass_config import (
    OpenCompassBenchmark,
    config_text,
    lay_out_data,
    write_tokenizer,
)
from evaluators.torchvision_repair import repair
from tests.benchmark_folders import write_bbh, write_ceval, write_gsm8k, write_mmlu

MMLU = OpenCompassBenchmark(
    benchmark="mmlu",
    config="opencompass/configs/datasets/mmlu/mmlu_gen_4d595a.py",
    data="/data/it's here",
    num_asked={"anatomy": 3, "virology": 2},
    max_tokens=64,
    model="merged",
    work="/work",
)


def text_of(asked: OpenCompassBenchmark) -> str:
    return config_text(
        asked,
        data=Path(asked.data),
        tokenizer=Path("/tokenizer"),
        url="http://127.0.0.1:1/v1",
        max_length=4096,
        num_requests=8,
    )


def executed(asked: OpenCompassBenchmark, datasets: list[dict]) -> dict:
    """The configuration's variables, with its imports left out."""
    tree = ast.parse(text_of(asked))
    tree.body = [each for each in tree.body if not isinstance(each, ast.ImportFrom | ast.With)]
    classes = (
        "OpenAISDK",
        "NaivePartitioner",
        "LocalRunner",
        "OpenICLEvalTask",
        "OpenICLInferTask",
    )
    names: dict = {name: name for name in classes}
    names |= {f"{asked.benchmark}_summary_groups": ["groups"]}
    names |= {f"{asked.benchmark}_datasets": datasets}
    # Globals and locals apart, as mmengine has them: loops see the names, comprehensions do not.
    exec(compile(tree, "config.py", "exec"), {}, names)
    return names


def test_it_names_what_is_asked_and_how_much_of_it():
    shared = {"input_columns": ["input"], "train_split": "dev"}
    datasets = [
        {
            "abbr": f"lukaemon_mmlu_{subject}",
            "path": "opencompass/mmlu",
            "reader_cfg": shared,
            "infer_cfg": {"inferencer": {"type": "GenInferencer"}},
        }
        for subject in ("anatomy", "astronomy", "virology")
    ]
    found = executed(MMLU, datasets)
    anatomy, virology = found["datasets"]
    assert (anatomy["abbr"], anatomy["path"]) == ("lukaemon_mmlu_anatomy", "/data/it's here")
    assert anatomy["reader_cfg"] == shared | {"test_range": "[0:3]"}
    assert virology["reader_cfg"]["test_range"] == "[0:2]"
    assert anatomy["infer_cfg"]["inferencer"]["max_out_len"] == 64
    (model,) = found["models"]
    assert model["temperature"] == 0.0 and model["key"] == "ENV"
    assert model["openai_api_base"] == "http://127.0.0.1:1/v1"
    # Without these it would send all turns as one, and one query a second.
    assert [each["role"] for each in model["meta_template"]["round"]] == ["HUMAN", "BOT"]
    assert model["query_per_second"] > 1
    # One task for all data sets: every task imports OpenCompass anew.
    assert found["infer"]["partitioner"]["n"] == found["eval"]["partitioner"]["n"] == 2
    assert found["eval"]["runner"]["task"]["dump_details"] is True
    assert found["summarizer"] == {"summary_groups": ["groups"]}


def test_gsm8k_has_no_groups_and_one_data_set():
    gsm8k = replace(
        MMLU,
        benchmark="gsm8k",
        config="opencompass/configs/datasets/gsm8k/gsm8k_gen_1d7fe4.py",
        num_asked={"gsm8k": 5},
    )
    assert gsm8k.datasets == {"gsm8k": 5}
    assert "summarizers.groups" not in text_of(gsm8k)
    assert executed(replace(gsm8k, num_asked={}), [{"abbr": "gsm8k"}])["datasets"] == []


def test_data_is_where_and_as_it_looks_for_it(tmp_path: Path):
    def laid_out(benchmark: str) -> Path:
        asked = replace(MMLU, benchmark=benchmark, data=str(tmp_path / benchmark))
        return lay_out_data(asked, tmp_path / "links" / benchmark)

    write_gsm8k(tmp_path / "gsm8k")
    write_mmlu(tmp_path / "mmlu")
    write_bbh(tmp_path / "bbh")
    write_ceval(tmp_path / "ceval")
    for path in (tmp_path / "ceval" / "test").iterdir():
        path.unlink()  # val is asked, and nobody needs to have test
    assert laid_out("mmlu") == tmp_path / "mmlu"
    assert (laid_out("bbh") / "navigate.json").is_file()
    for _ in range(2):  # links that are there are made anew
        gsm8k, ceval = laid_out("gsm8k"), laid_out("ceval")
    test = (tmp_path / "gsm8k" / "test.jsonl").read_text()
    assert [(gsm8k / f"{split}.jsonl").read_text() for split in ("train", "test")] == [test, test]
    for split in ("dev", "val", "test"):
        assert (ceval / split / f"law_{split}.csv").is_file()


def test_the_tokenizer_is_written_without_code_of_the_model(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    from tests.language_checkpoints import make_tiny_llama

    repair()
    model = make_tiny_llama(tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    write_tokenizer(model, tmp_path / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    text = "the quick brown fox: Antwort 42 是"
    ours = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    assert theirs(text).input_ids == ours(text).input_ids
