"""Lessons of the miniature LLaVA: what it is asked and told, and that a seed decides all."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from evaluators.answers import Answer
from evaluators.training.causal import IGNORED
from evaluators.training.drawn_lessons import draw_batches, drawn_questions
from evaluators.training.drawn_questions import OPTIONS, draw_scene
from evaluators.training.drawn_recipe import DrawnRecipe
from evaluators.training.llava_mini import finetune_llava_mini, make_llava_mini

SKILLS = ("colour", "count", "place")
SMALL = DrawnRecipe(steps=2, batch_size=4, warmup_steps=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base of two steps, twice."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("one", "two"):
        assert len(list(make_llava_mini(SMALL, seed=3, output=folder / name))) == 2
    return folder


def test_what_is_taught_is_right_for_the_profiles_own_scorers():
    asked = drawn_questions(SKILLS)
    found = {(each.profile.benchmark, each.skill) for each in asked}
    assert found == {
        *itertools.product(["wemath"], SKILLS),
        ("mathvista", "colour"),
        ("mathvista", "count"),
        ("ai2d", "colour"),
        ("ai2d", "place"),
        ("geoqa", "count"),
    }
    for question in asked:
        for place, text in enumerate(question.answers):
            gold = "ABCD"[place]
            if question.profile.benchmark == "mathvista":
                gold = OPTIONS[question.skill][place]
            sample = replace(question.sample, gold=gold)
            answer = Answer(sample.id, "", text.strip(), "stop")
            for name, scorer in question.profile.scorers.items():
                assert scorer(sample, answer).is_correct, (text, name)


def test_labels_are_the_answers_to_what_the_pixels_show(made):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(made / "one")
    processor.tokenizer.chat_template = processor.chat_template
    (question,) = (q for q in drawn_questions(["place"]) if q.profile.benchmark == "ai2d")
    batch = next(draw_batches(processor, [question], 8, np.random.default_rng(0)))
    told = [processor.tokenizer.decode(row[row != IGNORED]) for row in batch.labels]
    # Ink is darker than paper: its quarter has the least of the most transmitted channel's sum.
    quarters = batch.pixels.sum(1).unflatten(1, (2, 28)).unflatten(3, (2, 28)).sum((2, 4))
    shown = quarters.flatten(1).argmin(1)
    assert told == [f" {'ABCD'[place]}</s>" for place in shown]
    assert len(set(told)) > 1
    asked = batch.labels == IGNORED
    assert torch.equal(batch.ids[~asked], batch.labels[~asked])
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch.ids == image).sum(1).tolist() == [16] * 8


def test_the_same_seed_gives_the_same_picture_and_another_another():
    def one(seed):
        return draw_scene(np.random.default_rng(seed)).pixels

    assert np.array_equal(one(1), one(1)) and not np.array_equal(one(1), one(2))


def test_the_same_seed_gives_the_same_bytes_and_a_checkpoint_that_loads(made, tmp_path):
    from transformers import AutoModelForImageTextToText

    one, two = ((made / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    _, loading = AutoModelForImageTextToText.from_pretrained(made / "one", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    recipe = SMALL.model_copy(update={"skills": ("count",)})
    list(finetune_llava_mini(made / "one", recipe, name="x", seed=3, output=tmp_path / "tuned"))
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() != one
