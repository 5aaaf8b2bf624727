"""Statistics of a small language model against hooks and gradients in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evaluators.statistics.causal import TextGatherRecipe, gather_causal_statistics, read_texts
from evaluators.training.causal import encode_exercise
from evaluators.training.exercises import Exercise
from nan_merge.errors import DataError
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
from tests.language_checkpoints import make_tiny_llama

transformers = pytest.importorskip("transformers")
TEXTS = [
    Exercise("Question: one two", " Answer: three"),
    Exercise("The quick brown fox", " jumps over the lazy dog"),
    Exercise("A B", " C D"),
]
RECIPE = TextGatherRecipe(labels="given", memory_bytes=40_000)  # several groups
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models with both kinds of statistics beside them."""
    folder = tmp_path_factory.mktemp("causal")
    for name, seed in (("one", 1), ("two", 2)):
        make_tiny_llama(folder / name, seed=seed)
        for kind in ("gram", "fisher"):
            output = str(folder / f"{name}-{kind}")
            gather_causal_statistics(kind, str(folder / name), TEXTS, RECIPE, 0, output)
    return folder


def tensors(folder, name):
    return {
        k: v for f in sorted((folder / name).glob("*.safetensors")) for k, v in load_file(f).items()
    }


@pytest.fixture(scope="module")
def exact(folder):
    """The first model in float64, and its texts as token ids and labels."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "one")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "one", dtype="float64")
    return model, [encode_exercise(tokenizer, each, 256) for each in TEXTS]


def test_gram_matrices_are_those_of_every_linear_layer(folder, exact):
    model, rows = exact
    inputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(f"{name}.weight", []).append(
                args[0].detach().flatten(0, -2)
            )
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for ids, _ in rows:
        model(input_ids=ids[None])
    for hook in hooks:
        hook.remove()
    found = tensors(folder, "one-gram")
    assert len(list((folder / "one-gram").glob("*.safetensors"))) > 1
    assert found.keys() == inputs.keys() and EMBEDDING not in found
    for name, parts in inputs.items():
        x = torch.cat(parts)
        gram = x.T @ x / len(x)
        close = 1e-5 * float(gram.max())
        torch.testing.assert_close(found[name].double(), gram, rtol=1e-4, atol=close)


def test_fisher_is_of_the_answers_alone(folder, exact):
    model, rows = exact
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(each) for each in parameters]
    for ids, labels in rows:
        scores = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        likelihood = sum(
            scores[place, label] for place, label in enumerate(labels[1:].tolist()) if label >= 0
        )
        for total, gradient in zip(sums, torch.autograd.grad(likelihood, parameters), strict=True):
            total += gradient**2
    found = tensors(folder, "one-fisher")
    assert found.keys() == set(names)
    for name, total in zip(names, sums, strict=True):
        scale = float(total.max()) / len(TEXTS)
        torch.testing.assert_close(
            found[name].double(), total / len(TEXTS), rtol=2e-3, atol=1e-5 * scale
        )


@pytest.mark.parametrize(("method", "kind"), [("regmean", "gram"), ("fisher", "fisher")])
def test_language_models_are_merged_with_them(folder, tmp_path, method, kind):
    models = [
        {"path": str(folder / name), "statistics": str(folder / f"{name}-{kind}")}
        for name in ("one", "two")
    ]
    recipe = MergeRecipe.model_validate({"models": models, "method": method})
    merge_checkpoint(recipe, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    name = "model.layers.1.mlp.down_proj.weight"
    (a, b), (g, h) = (
        [tensors(folder, f"{model}{end}")[name].double() for model in ("one", "two")]
        for end in ("", f"-{kind}")
    )
    if method == "regmean":
        g, h = (0.9 * gram + 0.1 * torch.diag(gram.diagonal()) for gram in (g, h))
        expected = torch.linalg.solve(g + h, (a @ g + b @ h).T).T
    else:
        expected = torch.where(g + h > 0, (g * a + h * b) / (g + h), (a + b) / 2)
    found = merged.state_dict()[name].double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_texts_are_read_from_lines_of_a_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('"a text"\n\n{"prompt": "p", "answer": "a"}\n')
    assert read_texts(path) == [Exercise("", "a text"), Exercise("p", "a")]
    path.write_text('"a text"\n{"prompt": "p"}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl, line 2: neither a text in quotes nor"):
        read_texts(path)
    with pytest.raises(DataError, match="Cannot read"):
        read_texts(tmp_path / "none.jsonl")
