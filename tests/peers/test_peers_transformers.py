"""transformers loads what the command merged and writes sensible text with it.

Once with SmolLM2-135M, real weights, and once with a model of a few thousand parameters that
learns its sentences here in seconds.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.language_checkpoints import HAS_SMOLLM2, smollm2

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (requirements/peers.txt)"
)

Tensors = dict[str, Tensor]
DENSITY = 0.4
CAPITALS = {"france": "paris", "italy": "rome", "japan": "tokyo", "egypt": "cairo"}
FACTS = [f"the capital of {country} is {city}" for country, city in CAPITALS.items()]
COLOURS = ["the sky is blue", "the grass is green", "the snow is white"]
ANIMALS = ["the cow says moo", "the cat says meow", "the dog says woof"]
ENGLISH = [
    "A kettle that is filled to the brim takes longer to boil than one that is half full.",
    "She folded the map twice, put it into her coat and walked down to the harbour.",
]
ARITHMETIC = [
    "Tom has 4 boxes with 6 pens each. 4 times 6 is 24, so he has 24 pens.",
    "A train leaves at 9 and arrives at 11. 11 minus 9 is 2, so it takes 2 hours.",
]


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def load_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def train(model: Any, tokenizer: Any, texts: Sequence[str], steps: int, rate: float) -> float:
    """Some AdamW steps on whole sentences; the loss of the last one."""
    torch.manual_seed(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    loss = torch.zeros(())
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def finetune(
    base: Path, folder: Path, texts: Sequence[str], steps: int, rate: float, last_layers: int
) -> Path:
    """A copy of the base, its last layers trained in float32, saved in the base's own type."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.model.layers[-last_layers:]:
        layer.requires_grad_(True)
    train(model, tokenizer, texts, steps, rate)
    model.to(getattr(torch, json.loads((base / "config.json").read_text())["dtype"]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def merge(folder: Path, base: Path, models: Sequence[Path], **rest: Any) -> dict[str, Any]:
    """The real command; what the manifest says of it."""
    recipe = folder.with_suffix(".yaml")
    content = {"base": str(base), "models": [str(model) for model in models], **rest}
    recipe.write_text(json.dumps(content))
    command = [sys.executable, "-m", "pipelines.cli", "merge", str(recipe), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "merge_manifest.json").read_text())


def continue_text(folder: Path, prompt: str, length: int, *, chat: bool) -> tuple[str, Tensor]:
    """Greedy text after a prompt, and the logits of its first token."""
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    if chat:
        question = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[0, -1]
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False
        )
    return tokenizer.decode(written[0, ids.shape[1] :]), logits


def weights(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def task_vectors(base: Tensors, models: Sequence[Tensors], name: str) -> list[np.ndarray]:
    """Differences in float32, as the merge takes them, widened."""
    return [(own[name].float() - base[name].float()).double().numpy() for own in models]


def assert_rounded(merged: Tensor, expected: np.ndarray) -> None:
    """Within one rounding of the float64 numbers; narrow types are the rounded numbers."""
    reference = torch.from_numpy(expected)
    step = torch.finfo(merged.dtype).eps
    torch.testing.assert_close(merged.double(), reference, rtol=step, atol=1e-7)
    if merged.dtype != torch.float32:
        # But for those that lie half way between two numbers, to the rounding of float32.
        assert float((merged == reference.to(merged.dtype)).double().mean()) > 0.999


def check_task_arithmetic(merged: Tensors, base: Tensors, models: Sequence[Tensors], names) -> None:
    for name in names:
        update = 0.5 * sum(task_vectors(base, models, name))
        assert_rounded(merged[name], base[name].double().numpy() + update)


def check_ties_with_nan(
    merged: Tensors, base: Tensors, models: Sequence[Tensors], names, manifest: dict[str, Any]
) -> None:
    """Norms, thresholds and a few tensors by the formulas of both papers, in float64."""
    squares, kept, num_elements = np.zeros(2), np.zeros(2), 0
    thresholds = list(manifest["magnitude_thresholds"].values())
    for name in base:
        num_elements += base[name].numel()
        for place, vector in enumerate(task_vectors(base, models, name)):
            squares[place] += np.square(vector).sum()
            kept[place] += int((np.abs(vector) >= thresholds[place]).sum())
    inverse = 1 / np.sqrt(squares)
    coefficients = inverse / inverse.sum()  # times m / 2, which is 1 for two models
    found = list(manifest["coefficients"].values())
    assert found == pytest.approx(coefficients.tolist(), rel=1e-6)
    assert all(count >= int(DENSITY * num_elements) + 1 for count in kept)
    for name in names:
        vectors = task_vectors(base, models, name)
        weighted = np.stack(
            [
                c * np.where(np.abs(vector) >= threshold, vector, 0)
                for c, vector, threshold in zip(found, vectors, thresholds, strict=True)
            ]
        )
        votes = weighted.sum(axis=0)
        elected = np.where(votes == 0, manifest["majority_sign"], np.sign(votes))
        agreeing = np.where(weighted * elected > 0, weighted, 0)
        update = agreeing.sum(axis=0) / np.maximum((agreeing != 0).sum(axis=0), 1)
        assert_rounded(merged[name], base[name].double().numpy() + update)


def prove(
    root: Path,
    base: Path,
    models: Sequence[Path],
    names: Sequence[str],
    prompt: str,
    answer: str,
    *,
    chat: bool,
) -> None:
    """Merge by Task Arithmetic and by TIES with NAN; compare weights, logits and text."""
    _, base_logits = continue_text(base, prompt, 1, chat=chat)
    before, tuned = weights(base), [weights(model) for model in models]
    half = {"source": "uniform", "lambda": 0.5}
    merge(root / "ta", base, models, method="task_arithmetic", coefficients=half)
    check_task_arithmetic(weights(root / "ta"), before, tuned, names)
    nan = {"source": "nan", "target": "task_vector"}
    ties = {"name": "ties", "density": DENSITY}
    manifest = merge(root / "ties", base, models, method=ties, coefficients=nan)
    check_ties_with_nan(weights(root / "ties"), before, tuned, names, manifest)
    for folder in (root / "ta", root / "ties"):
        text, logits = continue_text(folder, prompt, 12, chat=chat)
        assert answer in text
        assert float((logits - base_logits).abs().max()) > 1e-3


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_small_base(folder: Path) -> None:
    """A Llama of two layers that learns four capitals by heart."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = sorted({word for text in (*FACTS, *COLOURS, *ANIMALS) for word in text.split()})
    rows = {word: row for row, word in enumerate(["<pad>", "<unk>", *words])}
    plain = Tokenizer(WordLevel(rows, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(rows),
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    assert train(model, tokenizer, FACTS, 60, 1e-2) < 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_small_model_still_knows_its_capitals_after_a_merge(tmp_path: Path, own_cache: None):
    base = tmp_path / "base"
    make_small_base(base)
    models = [
        finetune(base, tmp_path / name, texts, steps=3, rate=1e-3, last_layers=2)
        for name, texts in (("colours", COLOURS), ("animals", ANIMALS))
    ]
    names = list(weights(base))
    prove(tmp_path, base, models, names, "the capital of france is", "paris", chat=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not HAS_SMOLLM2,
    reason="SmolLM2-135M is not installed (requirements/peers.txt)",
)
def test_a_merged_smollm2_answers(tmp_path: Path, own_cache: None):
    base = smollm2()
    models = [
        finetune(base, tmp_path / name, texts, steps=4, rate=1e-4, last_layers=8)
        for name, texts in (("english", ENGLISH), ("arithmetic", ARITHMETIC))
    ]
    names = [
        "model.embed_tokens.weight",
        "model.layers.25.mlp.down_proj.weight",
        "model.layers.29.self_attn.q_proj.weight",
        "model.layers.29.input_layernorm.weight",
    ]
    prove(tmp_path, base, models, names, "What is the capital of France?", "Paris", chat=True)
