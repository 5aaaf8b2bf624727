"""mergekit files, unchanged, through mergekit and through us: the same tensors come out.

Every file in `mergekit_files/` is run by both on small random Qwen2 checkpoints of odd shapes.
What is compared and how closely: `assert_same`. DARE and DELLA drop at random; mergekit is given
our draws, so that their results too are compared element by element, and one test leaves it its
own and compares what does not depend on them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from nan_merge.merge import merge_checkpoint
from nan_merge.random import uniform
from nan_merge.recipe_file import load_recipe

pytest.importorskip("mergekit", reason="mergekit is not installed (requirements/peers.txt)")

FILES = sorted(Path(__file__).with_name("mergekit_files").glob("*.yml"))
LAYERS, HIDDEN, HEADS, INNER = 3, 15, 3, 37
END = "<|endoftext|>"  # transformers gives it to every Qwen2 tokenizer that lacks it
WORDS = [*(f"w{number}" for number in range(60)), END]
NEW_WORDS = {"words": ["<sum>"], "signs": ["<carry>", "<sum>"]}
VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def shapes(num_rows: int) -> dict[str, tuple[int, ...]]:
    head = HIDDEN // HEADS
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.q_proj.bias": (HIDDEN,),
        "self_attn.k_proj.weight": (head, HIDDEN),
        "self_attn.k_proj.bias": (head,),
        "self_attn.v_proj.weight": (head, HIDDEN),
        "self_attn.v_proj.bias": (head,),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
    }
    layers = {
        f"model.layers.{i}.{key}": shape for i in range(LAYERS) for key, shape in layer.items()
    }
    ends = dict.fromkeys(VOCABULARY_TENSORS, (num_rows, HIDDEN))
    return {**ends, "model.norm.weight": (HIDDEN,), **layers}


def write_tokenizer(folder: Path, new_words: list[str]) -> None:
    vocabulary = {word: row for row, word in enumerate(WORDS)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": END}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(WORDS) + place, "content": word, "special": True, **plain}
        for place, word in enumerate(new_words)
    ]
    content = {"version": "1.0", "model": model, "added_tokens": added}
    content |= dict.fromkeys(
        ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"]
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": END})
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, three fine-tunes, and two with tokens that the base lacks."""
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(3)
    base = {
        name: torch.randn(shape, generator=generator) for name, shape in shapes(len(WORDS)).items()
    }
    for name in ("base", "chat", "math", "code", "words", "signs"):
        folder = root / name
        folder.mkdir()
        new_words = NEW_WORDS.get(name, [])
        num_rows = len(WORDS) + len(new_words)
        tensors = {}
        for key, shape in shapes(num_rows).items():
            tuned = torch.randn(shape, generator=generator) * (0 if name == "base" else 0.1)
            tuned[: len(base[key])] += base[key]
            tensors[key] = tuned
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": num_rows}))
        write_tokenizer(folder, new_words)
    return root


@pytest.fixture(autouse=True)
def in_models(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_mergekit(file: Path, output: Path) -> dict[str, Tensor]:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(output), MergeOptions(quiet=True, write_model_card=False))
    return load_file(output / "model.safetensors")


def run_ours(file: Path, output: Path) -> dict[str, Tensor]:
    merge_checkpoint(load_recipe(file), output, workers=1)
    return load_file(output / "model.safetensors")


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mergekit drop the elements that we drop, whichever order it works in."""
    from mergekit.merge_methods import generalized_task_arithmetic, task_adapter

    execute, sparsify = (
        task_adapter.ExecuteMergeMethodTask.execute,
        (generalized_task_arithmetic.sparsify),
    )
    place: dict[str, str] = {}
    names: Iterator[str] = iter(())

    def execute_noting_the_tensor(self, tensors, **rest):
        nonlocal names
        place["tensor"] = self.output_weight.name
        names = iter([m.model.path for m in self.model_order if m != self.base_model])
        return execute(self, tensors, **rest)

    def sparsify_noting_the_model(delta, **options):
        place["model"] = next(names)
        return sparsify(delta, **options)

    def bernoulli(chances: Tensor) -> Tensor:
        draws = uniform(0, place["model"], place["tensor"], 0, chances.numel())
        return (draws.view(chances.shape) < chances.float()).to(chances.dtype)

    monkeypatch.setattr(task_adapter.ExecuteMergeMethodTask, "execute", execute_noting_the_tensor)
    monkeypatch.setattr(generalized_task_arithmetic, "sparsify", sparsify_noting_the_model)
    monkeypatch.setattr(torch, "bernoulli", bernoulli)


def by_token(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, with rows of embeddings in the order of their tokens' names."""
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    rows = [row for _, row in sorted(tokens.items())]
    assert len(rows) == len(tensors["lm_head.weight"])
    return {
        name: tensor[rows] if name in VOCABULARY_TENSORS else tensor
        for name, tensor in tensors.items()
    }


def assert_same(file: Path, one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Every tensor, every element.

    Where mergekit computes in float32, within 2e-6 (values are of order 1), or one step of the
    output's type; Model Stock divides by a difference of cosines, so within 2e-5 there. Where
    mergekit computes in bfloat16 it rounds inputs, task vectors and sums to 8 bits: within 4
    steps; TIES, which compares such numbers, may keep other elements near the threshold, so 2 % of
    the model's elements may differ by more.
    """
    words = yaml.safe_load(file.read_text())
    computed, written = words.get("dtype"), words.get("out_dtype") or words.get("dtype")
    step = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}[written]
    tolerance = step if computed == "float32" else 4 * step
    if words["merge_method"] == "model_stock":
        tolerance *= 10
    assert one.keys() == other.keys()
    num_wrong = num_elements = 0
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape)
        assert str(tensor.dtype) == f"torch.{written}"
        expected = other[name].double()
        wrong = (tensor.double() - expected).abs() > tolerance * expected.abs().clamp_min(1)
        num_wrong, num_elements = num_wrong + int(wrong.sum()), num_elements + tensor.numel()
    may_trim_others = words["merge_method"] == "ties" and computed == "bfloat16"
    assert num_wrong <= (num_elements / 50 if may_trim_others else 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_mergekit_file_gives_what_mergekit_gives(file: Path, tmp_path: Path, our_draws: None):
    theirs = run_mergekit(file, tmp_path / "theirs")
    ours = run_ours(file, tmp_path / "ours")
    if "tokenizer" in file.stem:
        theirs, ours = by_token(tmp_path / "theirs", theirs), by_token(tmp_path / "ours", ours)
    assert_same(file, ours, theirs)
    rows = json.loads((tmp_path / "ours/config.json").read_text())["vocab_size"]
    assert rows == json.loads((tmp_path / "theirs/config.json").read_text())["vocab_size"]


def test_the_files_cover_every_shared_method():
    from nan_merge.mergekit_parameters import METHODS_OF_MERGEKIT

    used = {yaml.safe_load(file.read_text())["merge_method"] for file in FILES}
    assert used == set(METHODS_OF_MERGEKIT)
    assert len(FILES) >= 16


def test_with_draws_of_its_own_dare_keeps_as_many_elements_and_the_same_sums(
    models: Path, tmp_path: Path
):
    """Density 0.3 of one model: which elements stay is chance, how many and their sum are not."""
    file = next(file for file in FILES if file.stem == "dare_linear_one_model")
    base, chat = (load_file(models / name / "model.safetensors") for name in ("base", "chat"))
    for merged in (run_mergekit(file, tmp_path / "theirs"), run_ours(file, tmp_path / "ours")):
        kept = total = 0
        for name, tensor in merged.items():
            update, vector = tensor - base[name], chat[name] - base[name]
            kept_here = int((update.abs() > 1e-6).sum())
            kept, total = kept + kept_here, total + update.numel()
            if kept_here:  # of a bias of five elements, none may be
                expected = pytest.approx(float(vector.abs().sum()), rel=1e-4)
                assert float(update.abs().sum()) == expected
        deviation = (0.3 * 0.7 / total) ** 0.5
        assert abs(kept / total - 0.3) < 5 * deviation
