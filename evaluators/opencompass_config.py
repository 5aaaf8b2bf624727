"""What OpenCompass is told: a configuration, and the data and tokenizer in the form that it reads.

Written for version 0.5.4; the names of its files and options are those of that version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.benchmarks.bbh import data_path
from evaluators.benchmarks.bbh_tasks import TASKS
from evaluators.benchmarks.ceval_subjects import SUBJECTS as CEVAL_SUBJECTS
from evaluators.rendering import load_tokenizer
from nan_merge.errors import EvaluationError

SERVED_NAME = "nan-merge"
"""The model's name in requests. Not its own: where OpenCompass reads o1 or o3 in a name, it takes
the model for one of OpenAI's and leaves the temperature out (``models/openai_api.py``)."""
PREFIXES = {"mmlu": "lukaemon_mmlu_", "ceval": "ceval-", "bbh": "bbh-", "gsm8k": ""}
"""Benchmark -> what its data sets are called in OpenCompass, before the subset's name."""
QUERIES_PER_SECOND = 200  # its own default is 1

# `round` makes it send turns; without one it would join them to a single message. Loops and not
# comprehensions: the text is executed where these do not see its names.
_TEXT = """\
# Written by nan-merge for one evaluation, and again for the next one.
from mmengine.config import read_base
from opencompass.models import OpenAISDK
from opencompass.partitioners import NaivePartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask

with read_base():
    from {module} import {benchmark}_datasets
{import_groups}
num_asked = {num_asked!r}
datasets = []
for item in {benchmark}_datasets:
    if item["abbr"] in num_asked:
        item["path"] = {data!r}
        item["reader_cfg"] = dict(
            item["reader_cfg"], test_range="[0:" + str(num_asked[item["abbr"]]) + "]"
        )
        item["infer_cfg"]["inferencer"]["max_out_len"] = {max_tokens!r}
        datasets.append(item)
del item, num_asked

models = [
    dict(
        type=OpenAISDK,
        abbr={model!r},
        path={served_name!r},
        openai_api_base={url!r},
        key="ENV",
        tokenizer_path={tokenizer!r},
        meta_template=dict(
            round=[
                dict(role="HUMAN", api_role="HUMAN"),
                dict(role="BOT", api_role="BOT", generate=True),
            ],
            reserved_roles=[dict(role="SYSTEM", api_role="SYSTEM")],
        ),
        temperature=0.0,
        max_seq_len={max_length!r},
        max_out_len={max_tokens!r},
        query_per_second={queries_per_second!r},
        batch_size={num_requests!r},
        max_workers={num_requests!r},
        retry=3,
        run_cfg=dict(num_gpus=0),
    )
]
infer = dict(
    partitioner=dict(type=NaivePartitioner, n={num_datasets!r}),
    runner=dict(type=LocalRunner, max_num_workers=1, task=dict(type=OpenICLInferTask)),
)
eval = dict(
    partitioner=dict(type=NaivePartitioner, n={num_datasets!r}),
    runner=dict(
        type=LocalRunner, max_num_workers=1, task=dict(type=OpenICLEvalTask, dump_details=True)
    ),
)
summarizer = dict(summary_groups={groups})
"""


@dataclass(frozen=True)
class OpenCompassBenchmark:
    """A benchmark as OpenCompass is to ask it of one model.

    Attributes:
        benchmark: One of `PREFIXES`.
        config: Its configuration, as a path in OpenCompass' repository.
        data: Folder of its data, in the layout of the benchmark's authors.
        num_asked: Subset -> how many of its first samples are asked.
        max_tokens: Most new tokens of an answer.
        model: The model's name in OpenCompass' files; safe for a file system.
        work: Folder for all that OpenCompass reads and writes.
    """

    benchmark: str
    config: str
    data: str
    num_asked: dict[str, int]
    max_tokens: int
    model: str
    work: str

    @property
    def datasets(self) -> dict[str, int]:
        """What OpenCompass calls the subsets -> how many samples of each are asked."""
        prefix = PREFIXES[self.benchmark]
        return {f"{prefix}{subset}": number for subset, number in self.num_asked.items()}


def config_text(
    asked: OpenCompassBenchmark,
    *,
    data: Path,
    tokenizer: Path,
    url: str,
    max_length: int,
    num_requests: int,
) -> str:
    """The configuration file of one evaluation.

    Args:
        asked: What is asked.
        data: Folder of the data as OpenCompass reads it.
        tokenizer: Folder of the model's tokenizer.
        url: Base URL of the endpoint that answers.
        max_length: Most tokens of a prompt and its answer.
        num_requests: How many are sent at once.
    """
    name = asked.benchmark
    has_groups = name != "gsm8k"
    groups = f"{name}_summary_groups" if has_groups else "[]"
    imported = f"    from opencompass.configs.summarizers.groups.{name} import {groups}\n"
    return _TEXT.format(
        module=asked.config.removesuffix(".py").replace("/", "."),
        benchmark=name,
        import_groups=imported if has_groups else "",
        groups=groups,
        num_asked=asked.datasets,
        num_datasets=len(asked.datasets),
        data=str(data),
        max_tokens=asked.max_tokens,
        model=asked.model,
        served_name=SERVED_NAME,
        url=url,
        tokenizer=str(tokenizer),
        max_length=max_length,
        queries_per_second=QUERIES_PER_SECOND,
        num_requests=num_requests,
    )


def lay_out_data(asked: OpenCompassBenchmark, folder: Path) -> Path:
    """Where OpenCompass finds a benchmark's data: its own folder, or links to what it wants.

    Args:
        asked: The benchmark.
        folder: For links, where some are needed.
    """
    data = Path(asked.data).absolute()
    if asked.benchmark == "bbh":
        return data_path(data, TASKS[0]).parent
    if asked.benchmark == "gsm8k":
        for split in ("train", "test"):  # it opens both, and asks the one
            _link(folder / f"{split}.jsonl", data / "test.jsonl")
        return folder
    if asked.benchmark == "ceval":
        for subject in CEVAL_SUBJECTS:
            for split in ("dev", "val", "test"):  # it opens all three, and asks val
                there = data / split / f"{subject}_{split}.csv"
                stand_in = data / "val" / f"{subject}_val.csv"
                place = folder / split / f"{subject}_{split}.csv"
                _link(place, there if there.is_file() else stand_in)
        return folder
    return data


def write_tokenizer(model: Path, folder: Path) -> None:
    """Write a model's tokenizer for OpenCompass, which counts tokens with it.

    It would load the model's own folder with the code that may lie there (``trust_remote_code``),
    and with an older transformers, which does not know every class of a newer one.

    Raises:
        EvaluationError: If the tokenizer has no form that both can read.
    """
    backend: Any = getattr(load_tokenizer(model), "backend_tokenizer", None)
    if backend is None:
        raise EvaluationError(
            f"{model}: the tokenizer is Python code of its own, and OpenCompass counts tokens with "
            "a tokenizer.json. Evaluate this model with engine: nan-merge."
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)
