"""Which language benchmarks are asked, and what answers: sections of the run file and options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from evaluators.language_evaluation import LanguageModelOptions
from nan_merge.schema import StrictModel


def _expand_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class BackendSpec(StrictModel):
    """What language models run on."""

    name: Literal["vllm", "transformers"] = "vllm"
    """Engine."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the arithmetic."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """For transformers; vLLM is built for one kind of device."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of a prompt and its answer together; the model's own if absent."""
    tensor_parallel: int = Field(default=1, ge=1)
    """For vLLM: over how many GPUs a model is spread."""
    batch_tokens: int = Field(default=8192, ge=1)
    """For transformers: most tokens of a batch, padding included."""
    eager: bool | None = None
    """For vLLM: start at once instead of compiling the model first; so on a CPU if absent."""
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """For vLLM on a GPU: the share of its memory that it may take."""
    kv_cache_gib: int = Field(default=2, ge=1)
    """For vLLM on a CPU: GiB for the keys and values of what it has read."""

    def options(self) -> LanguageModelOptions:
        """The same, as a model actor takes it."""
        content = self.model_dump()
        return LanguageModelOptions(backend=content.pop("name"), **content)


class EngineSpec(StrictModel):
    """Whose program asks language models and scores their answers."""

    name: Literal["nan-merge", "opencompass"] = "nan-merge"
    """This one, or OpenCompass as it is, against a server of the model."""
    python: Path | None = None
    """For opencompass: the interpreter of the environment in which it is installed;
    `$NAN_MERGE_OPENCOMPASS` or `.venv-opencompass/bin/python` if absent."""
    requests: int = Field(default=32, ge=1)
    """For opencompass: requests that are under way at once."""
    silence_seconds: float = Field(default=1200, gt=0)
    """For opencompass: it is ended if nothing that it writes grows for so long."""


class BenchmarkSpec(StrictModel):
    """One language benchmark, and how it is asked."""

    name: str = Field(min_length=1)
    """A benchmark's name, or the YAML file of one of your own."""
    profile: str | None = None
    """How it is asked and scored; the benchmark's first profile if absent."""
    data: Path | None = None
    """Folder of its data, or of many benchmarks' data; `evaluate.data` if absent."""
    limit: int | None = Field(default=None, ge=1)
    """Ask only the first so many samples of each subset."""
    subsets: tuple[str, ...] = ()
    """Ask only these subsets; there is no average then."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Fewer new tokens than the profile allows, for a quick look; scores are other ones then."""
    chat_template: bool | None = None
    """Whether the model's chat template is applied; what the profile says if absent."""


Backend = Annotated[BackendSpec, BeforeValidator(_expand_name)]
Engine = Annotated[EngineSpec, BeforeValidator(_expand_name)]
