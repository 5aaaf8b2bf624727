import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import IncompatibleError
from nan_merge.missing import ties_embeddings
from nan_merge.plan import align

Write = Callable[..., Checkpoint]


@pytest.fixture
def write(write_checkpoint: Callable[..., str]) -> Write:
    """A checkpoint with tensors of these names, and with this config."""

    def write(name: str, *tensors: str, **config: object) -> Checkpoint:
        path = write_checkpoint(name, {tensor: torch.ones(3, 2) for tensor in tensors})
        (Path(path) / "config.json").write_text(json.dumps(config))
        return open_checkpoint(path, name)

    return write


@pytest.fixture
def models(write: Write) -> list[Checkpoint]:
    return [write("base", "a", "b", "c"), write("one", "a", "b", "c", "x"), write("two", "a", "c")]


def test_by_default_every_missing_tensor_is_listed(models: list[Checkpoint]):
    with pytest.raises(IncompatibleError) as caught:
        align(models[0], models[1:])
    assert "one has a tensor that base lacks: x" in str(caught.value)
    assert "two (" in str(caught.value)
    assert ") lacks tensor b" in str(caught.value)
    assert "`missing: base` or `missing: drop`" in str(caught.value)


def test_drop_keeps_what_all_have(models: list[Checkpoint]):
    assert [tensor.name for tensor in align(models[0], models[1:], "drop")] == ["a", "c"]


def test_base_keeps_the_bases_tensors_and_takes_them_for_unchanged(models: list[Checkpoint]):
    aligned = align(models[0], models[1:], "base")
    assert [tensor.name for tensor in aligned] == ["a", "b", "c"]
    base, one, two = models
    assert aligned[1].finetuned == (one.tensors["b"], base.tensors["b"])
    assert aligned[0].finetuned == (one.tensors["a"], two.tensors["a"])


def test_the_first_pattern_that_matches_counts(models: list[Checkpoint]):
    aligned = align(models[0], models[1:], {"b": "base", "*": "drop"})
    assert [tensor.name for tensor in aligned] == ["a", "b", "c"]
    with pytest.raises(IncompatibleError, match=r"\(1 problem\):\n.*lacks tensor b"):
        align(models[0], models[1:], {"x": "drop"})


def test_a_pattern_that_matches_no_tensor_is_an_error(models: list[Checkpoint]):
    with pytest.raises(IncompatibleError, match="pattern 'lm_haed' matches no tensor"):
        align(models[0], models[1:], {"lm_haed": "drop", "*": "base"})


def test_without_a_base_only_drop_helps(models: list[Checkpoint]):
    _, one, two = models
    assert [tensor.name for tensor in align(None, [one, two], "drop")] == ["a", "c"]
    with pytest.raises(IncompatibleError, match="`missing: base` needs a `base`"):
        align(None, [one, two], "base")


def test_models_without_a_common_tensor_are_refused(write: Write):
    with pytest.raises(IncompatibleError, match="no tensor is in all of them"):
        align(write("base", "a"), [write("one", "b")], "drop")


def test_no_policy_excuses_another_shape(write_checkpoint: Callable[..., str]):
    base = open_checkpoint(write_checkpoint("base", {"a": torch.ones(2)}))
    other = open_checkpoint(write_checkpoint("other", {"a": torch.ones(3)}))
    with pytest.raises(IncompatibleError, match=r"a: other has shape \(3,\)"):
        align(base, [other], "drop")


def test_a_head_that_the_base_ties_is_to_be_left_out(write: Write):
    base = write("base", "embed_tokens.weight", tie_word_embeddings=True)
    names = ("embed_tokens.weight", "lm_head.weight")
    model = write("one", *names, tie_word_embeddings=True)
    with pytest.raises(IncompatibleError, match=r"missing: {lm_head\.weight: drop}") as caught:
        align(base, [model])
    assert "gives up" not in str(caught.value)
    untied = write("two", *names, tie_word_embeddings=False)
    with pytest.raises(IncompatibleError, match="gives up the head that two trained"):
        align(base, [untied])
    aligned = align(base, [model], {"lm_head.weight": "drop"})
    assert [tensor.name for tensor in aligned] == ["embed_tokens.weight"]


def test_a_head_that_only_the_model_ties_is_to_be_stored(write: Write):
    base = write("base", "embed_tokens.weight", "lm_head.weight", tie_word_embeddings=False)
    model = write("one", "embed_tokens.weight", text_config={"tie_word_embeddings": True})
    with pytest.raises(IncompatibleError, match="tie_word_embeddings=False") as caught:
        align(base, [model])
    assert "missing: {lm_head.weight: base}" in str(caught.value)


def test_a_head_that_both_store_is_a_tensor_like_any_other(write: Write):
    names = ("embed_tokens.weight", "lm_head.weight")
    base = write("base", *names, tie_word_embeddings=True)
    aligned = align(base, [write("one", *names, tie_word_embeddings=True)])
    assert [tensor.name for tensor in aligned] == list(names)


@pytest.mark.parametrize(
    ("config", "ties"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": False}}, False),
        ({"tie_word_embeddings": "maybe"}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_a_config_says_of_tying(tmp_path: Path, config: object, ties: bool | None):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert ties_embeddings(tmp_path) is ties
