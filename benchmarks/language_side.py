"""Our side of language_speed.py, and bare vLLM: does one job, prints its seconds and answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluators.language_evaluation import (
    LanguageModelOptions,
    LanguageShard,
    answer_shard,
    open_language_model,
)
from evaluators.profiles import Decoding
from evaluators.rendering import Wording, load_tokenizer, prompt_text
from evaluators.samples import Message, Sample

CHAT = Wording(uses_chat_template=True)
NUM_WARM_UP = 4


def samples_of(job: dict[str, Any]) -> list[Sample]:
    """Samples with choices, or questions for a chat."""
    writes = job["side"] != "choices"
    return [
        Sample(
            id=row["id"],
            cluster_id=row["id"],
            subset=row["subset"],
            lead=() if writes else row["lead"],
            shots=(),
            question=(Message("user", row["question"]),) if writes else row["question"],
            choices=() if writes else tuple(job["choices"]),
            labels=("A", "B", "C", "D"),
            gold="",
        )
        for row in job["samples"]
    ]


def our_side(job: dict[str, Any]) -> tuple[float, list[Any]]:
    """`answer_shard`, as a model actor calls it."""
    options = LanguageModelOptions(backend=job["backend"], dtype=job["dtype"], eager=job["eager"])
    opened = open_language_model(job["model"], options)
    samples = samples_of(job)
    writes = job["side"] == "writing"
    decoding = Decoding(job["max_tokens"]) if writes else None
    wording = CHAT if writes else Wording(uses_chat_template=False)

    def answer(some: list[Sample]) -> list[Any]:
        shard = LanguageShard("mmlu/speed", 0, tuple(some), decoding, wording)
        answers = answer_shard(opened, shard)
        if writes:
            return [each.completion for each in answers]
        rows = [each.log_probabilities for each in answers]
        return [max(range(len(row)), key=lambda at: row[at] or -1e9) for row in rows]

    try:
        answer(samples[-NUM_WARM_UP:])
        return timed(lambda: answer(samples))
    finally:
        opened.close()


def bare_side(job: dict[str, Any]) -> tuple[float, list[Any]]:
    """`vllm.LLM.generate` with the rendered text."""
    from evaluators.backends.vllm_environment import (
        engine_variables,
        environment,
        new_engine_folder,
    )

    with environment(engine_variables(2, new_engine_folder())):
        from vllm import LLM, SamplingParams

        engine = LLM(
            model=job["model"],
            dtype=job["dtype"],
            enforce_eager=job["eager"],
            generation_config="vllm",
        )
    tokenizer = load_tokenizer(Path(job["model"]))
    texts = [prompt_text(tokenizer, sample, CHAT, 0) for sample in samples_of(job)]
    parameters = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])

    def write(some: list[str]) -> list[Any]:
        outputs = engine.generate(some, parameters, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    write(texts[-NUM_WARM_UP:])
    return timed(lambda: write(texts))


def timed(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Seconds, and what the work gave."""
    started = time.perf_counter()
    answers = work()
    return time.perf_counter() - started, answers


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    seconds, found = (bare_side if task["side"] == "bare" else our_side)(task)
    print("\n" + json.dumps({"seconds": seconds, "answers": found}))
