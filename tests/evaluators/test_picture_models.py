"""Vision-language models answer questions about pictures, on transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.backends.language import PicturePrompt
from evaluators.backends.picture_processor import load_processor, process, prompt_lengths
from evaluators.benchmarks import PROFILES
from evaluators.language_evaluation import (
    LanguageModelOptions,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.picture_evaluation import check_sees
from evaluators.profiles import Decoding
from evaluators.rendering import load_tokenizer, wording_of
from nan_merge.errors import CheckpointError, DataError, EvaluationError
from nan_merge.recipe import MergeRecipe, ModelReference
from pipelines.hub_layout import in_hub_layout
from tests.language_checkpoints import make_tiny_llama
from tests.picture_folders import draw, write_ai2d, write_geoqa
from tests.vlm_checkpoints import (
    EMBEDDINGS,
    HEAD,
    as_original,
    finetuned,
    load_tensors,
    make_originals,
    make_tiny_llava,
    make_tiny_qwen,
    write_tensors,
)

PROFILE = replace(PROFILES["ai2d", "llava"], decoding=Decoding(6))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_tiny_llava(folder / "llava")
    make_tiny_llava(folder / "next", next_version=True)
    make_tiny_qwen(folder / "qwen")
    write_ai2d(folder / "data", 6)
    return folder


def answers(folder: Path, data: Path, **more: Any) -> list[Any]:
    options = LanguageModelOptions(
        backend="transformers", dtype="float32", device="cpu", max_length=1024, **more
    )
    opened = open_language_model(str(folder), options)
    (shard,) = language_shards(PROFILE, PROFILE.samples(data))
    try:
        return answer_shard(opened, shard)
    finally:
        opened.close()


@pytest.mark.parametrize("name", ["llava", "next", "qwen"])
def test_answers_are_those_of_generate_and_do_not_depend_on_the_batch(made, name):
    folder, samples = made / name, PROFILE.samples(made / "data")
    together = answers(folder, made / "data")
    alone = answers(folder, made / "data", batch_tokens=1)
    assert together == alone
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for number in (0, 3):
        content = [
            {"type": "image"},
            {"type": "text", "text": samples[number].question[0].content},
        ]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = draw(["red", "green", "blue"][number // 2], number // 2 + 1)
        inputs = processor(
            text=[text], images=[picture], add_special_tokens=False, return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        length = inputs["input_ids"].shape[1]
        assert together[number].num_prompt_tokens == length
        expected = processor.tokenizer.decode(written[0, length:], skip_special_tokens=True)
        assert together[number].completion.strip("\ufffd ") == expected.strip("\ufffd ")


def test_another_picture_gives_another_answer_and_another_prompt_digest(made):
    found = answers(made / "llava", made / "data")
    assert len({each.prompt_digest for each in found}) == len(found)
    assert len({each.completion for each in found}) > 1


@pytest.mark.parametrize("name", ["llava", "next", "qwen"])
def test_lengths_are_known_without_the_whole_work(made, name):
    processor = load_processor(made / name)
    token = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>"}.get(name, "<image>")
    for width, height in ((56, 56), (90, 40), (30, 130)):
        picture = draw("red").resize((width, height))
        ids = processor.tokenizer(f"{token}\nWhat?", add_special_tokens=False)["input_ids"]
        prompt = PicturePrompt(f"{token}\nWhat?", tuple(ids), (picture,))
        whole = process(processor, [prompt])["input_ids"].shape[1]
        assert prompt_lengths(processor, [prompt]) == [whole]


def test_a_prompt_that_is_too_long_is_an_abstention(made):
    options = LanguageModelOptions(
        backend="transformers", dtype="float32", device="cpu", max_length=60
    )
    opened = open_language_model(str(made / "llava"), options)
    (shard,) = language_shards(PROFILE, PROFILE.samples(made / "data")[:2])
    found = answer_shard(opened, shard)
    assert [each.is_missing for each in found] == [True, True]
    assert all(each.num_prompt_tokens > 60 for each in found)


def _sees(folder: Path, data: Path) -> None:
    sample = PROFILE.samples(data)[0]
    check_sees(load_tokenizer(folder), folder, sample, wording_of(PROFILE, True))


def test_a_chat_template_without_images_is_told_before_the_model_is_loaded(made, tmp_path):
    folder = tmp_path / "blind"
    shutil.copytree(made / "llava", folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    )
    with pytest.raises(EvaluationError, match=r"shows 1 images, .* has 0 of <image>: the chat"):
        _sees(folder, made / "data")


def test_a_language_model_that_cannot_see_is_told_so(made, tmp_path):
    folder = make_tiny_llama(tmp_path / "llama")
    with pytest.raises(EvaluationError, match="is no vision-language model"):
        _sees(folder, made / "data")


def test_a_template_in_the_file_of_older_processors_is_read(made, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(made / "llava", folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    _sees(folder, made / "data")


def test_a_text_that_names_the_image_token_is_refused(made, tmp_path):
    write_geoqa(tmp_path)
    path = tmp_path / "test_questions.jsonl"
    path.write_text(path.read_text().replace("How many", "<image> <image> How many"))
    profile = PROFILES["geoqa", "gllava-compat"]
    sample = profile.samples(tmp_path)[0]  # G-LLaVA's own placeholder is taken out
    folder = made / "llava"
    check_sees(load_tokenizer(folder), folder, sample, wording_of(profile, True))
    message = replace(sample.question[0], content="<image> again")
    with pytest.raises(EvaluationError, match=r"holds <image> itself"):
        check_sees(
            load_tokenizer(folder),
            folder,
            replace(sample, question=(message,)),
            wording_of(profile, True),
        )


def test_a_picture_that_changed_is_told(made, tmp_path):
    write_geoqa(tmp_path)
    profile = replace(PROFILES["geoqa", "mcq-letter"], decoding=Decoding(2))
    samples = profile.samples(tmp_path)
    (tmp_path / "test" / "0.png").write_bytes((tmp_path / "test" / "1.png").read_bytes())
    options = LanguageModelOptions(backend="transformers", dtype="float32", device="cpu")
    opened = open_language_model(str(made / "llava"), options)
    (shard,) = language_shards(profile, samples)
    with pytest.raises(DataError, match=r"test/0\.png: the image has changed"):
        answer_shard(opened, shard)


def test_weights_that_are_not_numbers_are_told(made, tmp_path):
    folder = finetuned(made / "llava", tmp_path / "nan", 1)
    tensors = load_tensors(folder)
    tensors["language_model.model.norm.weight"][:] = float("nan")
    write_tensors(folder, tensors)
    with pytest.raises(EvaluationError, match="logits are not numbers"):
        answers(folder, made / "data")


def test_a_missing_processor_is_told(made, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(made / "llava", folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="image processor"):
        answers(folder, made / "data")


def test_a_model_in_the_original_layout_is_asked_as_a_copy_in_the_hubs(made, tmp_path):
    base = made / "llava"
    own = finetuned(base, tmp_path / "own", 1)
    expected = load_tensors(own)
    as_original(own, tower=False)
    model = ModelReference(path=str(own), name="own")
    copy = in_hub_layout(str(base), model, own, tmp_path / "run", "own")
    assert copy != own
    found, before = load_tensors(copy), load_tensors(base)
    for name, tensor in found.items():
        source = before if name.startswith("vision_tower.") else expected
        assert torch.equal(tensor, source[name])
    assert len(answers(copy, made / "data")) == 6
    assert in_hub_layout(str(base), model, base, tmp_path / "run", "x") == base


def test_originals_alone_are_asked_as_copies_with_the_config_of_a_merge(made, tmp_path):
    wish = make_originals(tmp_path)
    merge = MergeRecipe.model_validate({**wish, "method": "task_arithmetic"})
    base, other = merge.base, merge.models[0]
    lone = ModelReference(path=str(base), name="Pretrained")
    assert (
        in_hub_layout(None, lone, tmp_path / "base", tmp_path / "run", "base") == tmp_path / "base"
    )
    copies = {
        "base": in_hub_layout(None, lone, tmp_path / "base", tmp_path / "run", "base", [merge]),
        "a": in_hub_layout(base, other, tmp_path / "a", tmp_path / "run", "a", [merge]),
    }
    for name, copy in copies.items():
        found, own = load_tensors(copy), load_tensors(tmp_path / f"{name}-hub")
        assert found.keys() == own.keys()
        for key, tensor in own.items():
            if not key.startswith("vision_tower."):
                rows = slice(0, len(tensor) - (key in (EMBEDDINGS, HEAD)))  # without <image>
                assert torch.equal(found[key][rows], tensor[rows])
        assert len(answers(copy, made / "data")) == 6
