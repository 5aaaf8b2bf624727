"""Under another model's tokenizer, the result's configs name that tokenizer's special tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from nan_merge.manifest import merge_key
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe

Write = Callable[..., Path]
BASE_WORDS = ["<s>", "</s>", "a", "b"]
CHAT_WORDS = ["a", "b", "<s>", "</s>", "<end>", "<pad>"]
BASE_IDS = {"bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        name: str,
        words: list[str],
        config: dict[str, Any],
        generation: dict[str, Any] | None = None,
        named: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = torch.arange(float(len(words)))[:, None].repeat(1, 3)
        save_file({"model.embed_tokens.weight": rows}, folder / "model.safetensors")
        tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, words[0]))
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"vocab_size": len(words), **config}))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        if named is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(named))
        return folder

    return write


def merged_configs(base: Path, model: Path, tokenizer: str) -> tuple[dict, dict]:
    out = base.parent / "out"
    merge_checkpoint(recipe(base, model, tokenizer), out)
    generation = out / "generation_config.json"
    return (
        json.loads((out / "config.json").read_text()),
        json.loads(generation.read_text()) if generation.is_file() else {},
    )


def recipe(base: Path, model: Path, tokenizer: str) -> MergeRecipe:
    return MergeRecipe.model_validate(
        {
            "base": str(base),
            "models": [str(model)],
            "method": "task_arithmetic",
            "tokenizer": tokenizer,
        }
    )


def test_the_chosen_models_own_ids_are_taken_from_the_file_of_the_same_name(write: Write):
    base = write("base", BASE_WORDS, BASE_IDS, {**BASE_IDS, "temperature": 0.6})
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 5}
    chat = write("chat", CHAT_WORDS, ids, {"eos_token_id": [3, 4], "bos_token_id": 2})
    config, generation = merged_configs(base, chat, "chat")
    assert config == {"vocab_size": 6, **ids}
    assert generation == {"bos_token_id": 2, "eos_token_id": [3, 4], "temperature": 0.6}


def test_else_the_ids_are_those_of_the_tokens_that_the_tokenizer_names(write: Write):
    base = write("base", BASE_WORDS, {**BASE_IDS, "pad_token_id": 1}, BASE_IDS)
    named = {"eos_token": {"content": "<end>"}, "pad_token": "<pad>", "unk_token": None}
    chat = write("chat", CHAT_WORDS, {}, named=named)
    config, generation = merged_configs(base, chat, "chat")
    # The chat model says nothing of <s>, so the base's token keeps its part under its new row.
    assert config == {"vocab_size": 6, "bos_token_id": 2, "eos_token_id": 4, "pad_token_id": 5}
    assert generation == {"bos_token_id": 2, "eos_token_id": 4}


def test_ids_of_other_tokens_follow_their_token_or_go(write: Write):
    more = {"image_token_id": 3, "video_token_id": 2, "eos_token_id": [1, 3], "hidden_size": 3}
    base = write("base", ["<s>", "</s>", "<video>", "b"], more)
    chat = write("chat", CHAT_WORDS, {})
    config, _ = merged_configs(base, chat, "chat")
    assert config == {
        "vocab_size": 6,
        "image_token_id": 1,
        "eos_token_id": [3, 1],
        "hidden_size": 3,
    }


def test_ids_of_a_language_model_inside_a_vision_model_too(write: Write):
    base = write("base", BASE_WORDS, {"text_config": {"eos_token_id": 1}})
    chat = write("chat", CHAT_WORDS, {"text_config": {"eos_token_id": 4}})
    config, _ = merged_configs(base, chat, "chat")
    assert config["text_config"] == {"eos_token_id": 4}


def test_a_generation_config_that_only_the_chosen_model_has_gives_its_ids(write: Write):
    base = write("base", BASE_WORDS, BASE_IDS)
    chat = write("chat", CHAT_WORDS, {}, {"eos_token_id": [3, 4], "top_p": 0.9})
    assert merged_configs(base, chat, "chat")[1] == {"eos_token_id": [3, 4]}


@pytest.mark.parametrize("tokenizer", ["base", "union"])
def test_the_bases_ids_stay_where_its_tokens_keep_their_rows(write: Write, tokenizer: str):
    base = write("base", BASE_WORDS, BASE_IDS, BASE_IDS)
    chat = write("chat", CHAT_WORDS, {"eos_token_id": 4}, {"eos_token_id": 4})
    config, generation = merged_configs(base, chat, tokenizer)
    num_rows = {"base": 4, "union": 6}[tokenizer]
    assert (config, generation) == ({"vocab_size": num_rows, **BASE_IDS}, BASE_IDS)
    tokens = Tokenizer.from_file(str(base.parent / "out/tokenizer.json")).get_vocab()
    assert (tokens["<s>"], tokens["</s>"]) == (0, 1)


def test_another_tokenizer_file_of_the_chosen_model_is_another_merge(write: Write):
    base = write("base", BASE_WORDS, BASE_IDS)
    chat = write("chat", CHAT_WORDS, {})
    before = merge_key(plan_merge(recipe(base, chat, "chat")), ["1", "2"])
    (chat / "chat_template.jinja").write_text("{{ x }}")
    assert merge_key(plan_merge(recipe(base, chat, "chat")), ["1", "2"]) != before
