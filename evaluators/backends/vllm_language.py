"""Causal language models on vLLM, for CUDA or the CPU build.

One engine is a tree of processes. They start with a folder of their own for sockets and log, and
`VllmLanguageModel.close` ends them all and removes it.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluators.backends.greedy import NOT_NUMBERS
from evaluators.backends.language import Completion, PictureCompletion, PicturePrompt
from evaluators.backends.picture_processor import can_see, load_processor, prompt_lengths
from evaluators.backends.vllm_death import how_it_ended, is_dead, waking_when_dead
from evaluators.backends.vllm_environment import (
    engine_variables,
    environment,
    is_cpu_build,
    last_words,
    new_engine_folder,
    output_to,
    require_vllm,
)
from evaluators.profiles import Decoding
from evaluators.rendering import end_token_ids, load_tokenizer, stop_token_ids
from nan_merge.errors import EngineDiedError, EvaluationError

CPU_BLOCK_SIZE = 32
"""Tokens in a block of keys and values on a CPU: a prefix is reused in whole blocks."""
MOST_TOKEN_IDS = 128
"""Token ids that vLLM gives log-probabilities for in one request."""
_END_SECONDS = 20.0


def open_vllm(
    folder: Path,
    *,
    dtype: str = "bfloat16",
    max_length: int | None = None,
    tensor_parallel: int = 1,
    eager: bool | None = None,
    gpu_memory: float = 0.9,
    kv_cache_gib: int = 2,
) -> VllmLanguageModel:
    """Start an engine on a checkpoint.

    Args:
        folder: A checkpoint in transformers' layout. Its generation_config.json does not change
            how answers are written, but for the tokens that end them.
        dtype: "float32" or "bfloat16".
        max_length: Most tokens of a prompt and its continuation; by default what the model was
            made for.
        tensor_parallel: Over how many GPUs the model is spread.
        eager: Whether to start at once, without compiling the model; by default on a CPU.
        gpu_memory: Share of a GPU's memory that it may take.
        kv_cache_gib: On a CPU, GiB for keys and values.

    Raises:
        CheckpointError: If the tokenizer cannot be loaded.
        EvaluationError: If the engine does not start, with its own last words.
        MissingExtraError: If vLLM is not installed.
    """
    require_vllm()
    tokenizer = load_tokenizer(folder)
    end_ids = end_token_ids(tokenizer, folder)
    processor = load_processor(folder) if can_see(folder) else None
    workplace = new_engine_folder()
    log = workplace / "engine.log"
    children = _descendants()
    try:
        with (
            log.open("ab") as file,
            environment(engine_variables(kv_cache_gib, workplace)),
            output_to(file.fileno()),
        ):
            engine = _start(folder, dtype, max_length, tensor_parallel, eager, gpu_memory)
    except Exception as error:
        words = last_words(log) if log.stat().st_size else str(error)
        _end(_descendants() - children)
        shutil.rmtree(workplace, ignore_errors=True)
        raise EvaluationError(f"vLLM does not start on {folder}:\n{words}") from error
    logging.getLogger("vllm").setLevel(logging.WARNING)
    started = _descendants() - children
    return VllmLanguageModel(engine, tokenizer, end_ids, workplace, started, processor)


def _start(
    folder: Path,
    dtype: str,
    max_length: int | None,
    tensor_parallel: int,
    eager: bool | None,
    gpu_memory: float,
) -> Any:
    from vllm import LLM

    on_cpu = is_cpu_build()
    options: dict[str, Any] = {}
    if on_cpu:
        options["block_size"] = CPU_BLOCK_SIZE
    else:
        options["gpu_memory_utilization"] = gpu_memory
    if tensor_parallel > 1:
        # Processes of our own: inside a Ray actor it would look for a placement group otherwise.
        options["distributed_executor_backend"] = "mp"
    return LLM(
        model=str(folder),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        max_model_len=max_length,
        tensor_parallel_size=tensor_parallel,
        enforce_eager=on_cpu if eager is None else eager,
        enable_prefix_caching=True,
        generation_config="vllm",
        trust_remote_code=False,
        load_format="safetensors",
        seed=0,
        **options,
    )


class VllmLanguageModel:
    """A `LanguageModel` on vLLM; make it with `open_vllm`."""

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        end_ids: Sequence[int],
        workplace: Path,
        processes: frozenset[int],
        processor: Any = None,
    ) -> None:
        self.max_length = int(engine.model_config.max_model_len)
        self._engine: Any = engine
        self._tokenizer, self._end_ids = tokenizer, list(end_ids)
        self._workplace, self._processes = workplace, processes
        self._shared = _shared_memory(processes)  # of one that is killed later it cannot be read
        self._processor = processor

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Completion]:
        """Write greedily; an answer that meets the end of the context is cut off.

        Raises:
            EngineDiedError: If the engine ended while it worked; so do the other methods.
            EvaluationError: If the model's logits are not numbers.
        """
        return self._write([{"prompt_token_ids": list(prompt)} for prompt in prompts], decoding)

    def generate_about(
        self, prompts: Sequence[PicturePrompt], decoding: Decoding
    ) -> list[PictureCompletion]:
        """Write greedily about pictures; a prompt that does not fit is answered by None.

        Raises:
            EngineDiedError: If the engine ended while it worked.
            EvaluationError: If the model cannot see, or its logits are not numbers.
        """
        if self._processor is None:
            raise EvaluationError("The model is no vision-language model.")
        lengths = prompt_lengths(self._processor, prompts)
        fitting = [place for place, length in enumerate(lengths) if length < self.max_length]
        inputs = [
            {
                "prompt_token_ids": list(prompts[place].token_ids),
                "multi_modal_data": {"image": list(prompts[place].pictures)},
            }
            for place in fitting
        ]
        written = dict(zip(fitting, self._write(inputs, decoding), strict=True))
        return [
            PictureCompletion(written.get(place), length) for place, length in enumerate(lengths)
        ]

    def _write(self, inputs: Sequence[dict[str, Any]], decoding: Decoding) -> list[Completion]:
        from vllm import SamplingParams

        end_ids = [*self._end_ids, *stop_token_ids(self._tokenizer, decoding.stop)]
        # The log-probability of what it writes shows whether its logits are numbers.
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=decoding.max_tokens,
            stop=list(decoding.stop),
            stop_token_ids=end_ids,
            logprobs=0,
            flat_logprobs=True,
        )
        outputs = [each.outputs[0] for each in self._run(inputs, [parameters] * len(inputs))]
        if not all(math.isfinite(each.cumulative_logprob) for each in outputs):
            raise EvaluationError(NOT_NUMBERS)
        return [self._completion(each) for each in outputs]

    def next_token_log_probabilities(
        self, prompts: Sequence[Sequence[int]], token_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Per prompt, natural log-probabilities of each of its ``token_ids`` as the next token."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprob_token_ids=list(ids)[:MOST_TOKEN_IDS],
                detokenize=False,
            )
            for ids in token_ids
        ]
        found: list[dict[int, float]] = []
        for output in self._run(_as_inputs(prompts), parameters):
            (logprobs,) = output.outputs[0].logprobs
            found.append({token: each.logprob for token, each in logprobs.items()})
        self._complete(prompts, token_ids, found)
        return [[row[token] for token in ids] for row, ids in zip(found, token_ids, strict=True)]

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        token_ids: Sequence[Sequence[int]],
        found: Sequence[dict[int, float]],
    ) -> None:
        """Ask on the full path for what vLLM did not tell."""
        missing = [
            (place, token)
            for place, ids in enumerate(token_ids)
            for token in ids
            if token not in found[place]
        ]
        if missing:
            asked = [prompts[place] for place, _ in missing]
            values = self.log_likelihoods(asked, [[token] for _, token in missing])
            for (place, token), value in zip(missing, values, strict=True):
                found[place][token] = value

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Per prompt, the summed natural log-probability of its continuation, given the prompt.

        vLLM computes these without the prefix cache.
        """
        from vllm import SamplingParams

        # One token is always written after the prompt; there must be room for it.
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        whole = [
            [*prompt, *continuation]
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]
        outputs = self._run(_as_inputs(whole), [parameters] * len(whole))
        return [
            math.fsum(
                output.prompt_logprobs[at][tokens[at]].logprob
                for at in range(len(prompt), len(tokens))
            )
            for output, prompt, tokens in zip(outputs, prompts, whole, strict=True)
        ]

    def close(self) -> None:
        """End the engine: no process, port or shared memory is left."""
        if self._engine is None:
            return
        shared = self._shared | _shared_memory(self._processes)
        with suppress(Exception):  # an engine that ended by itself
            self._engine.llm_engine.engine_core.shutdown(timeout=_END_SECONDS)
        self._engine = None
        _end(self._processes)
        for path in shared:  # an engine that was killed leaves it
            path.unlink(missing_ok=True)
        shutil.rmtree(self._workplace, ignore_errors=True)

    def _run(self, inputs: Sequence[dict[str, Any]], parameters: Sequence[Any]) -> list[Any]:
        if not inputs:
            return []
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            with waking_when_dead(self._engine, EngineDeadError):
                return self._engine.generate(list(inputs), list(parameters), use_tqdm=False)
        except Exception as error:
            # Its sockets are closed when it has ended, which may show first.
            if not isinstance(error, EngineDeadError) and not is_dead(self._engine):
                raise
            how = how_it_ended(self._engine)
            words = last_words(self._workplace / "engine.log")
            raise EngineDiedError(
                f"vLLM ended while it worked{f' ({how})' if how else ''}:\n{words}"
            ) from error

    def _completion(self, output: Any) -> Completion:
        text, tokens = output.text, list(output.token_ids)
        ends_by_token = isinstance(output.stop_reason, int)
        if ends_by_token and tokens[-1] not in self._tokenizer.all_special_ids:
            # vLLM leaves tokens that end an answer in its text, unless they are special.
            last = self._tokenizer.decode(tokens[-1:])
            text = text.removesuffix(last)
        reason = "length" if output.finish_reason == "length" else "stop"
        return Completion(text, reason, len(tokens))


def _as_inputs(prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


def _descendants() -> frozenset[int]:
    """Pids of all processes that descend from this one, but for Python's own helper."""
    import psutil

    found: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # It tidies up behind this process and stays as long as it does.
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                found.add(process.pid)
    return frozenset(found)


def _shared_memory(processes: frozenset[int]) -> set[Path]:
    """Named shared memory that processes have mapped."""
    found: set[Path] = set()
    for pid in processes:
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
            names = re.findall(r"(/dev/shm/\S+)$", maps, flags=re.MULTILINE)
            found.update(map(Path, names))
    return found


def _end(processes: frozenset[int]) -> None:
    """Wait for processes that were told to end; kill those that do not."""
    import psutil

    left: list[psutil.Process] = []
    for pid in processes:
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    _, left = psutil.wait_procs(left, timeout=_END_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_END_SECONDS)
