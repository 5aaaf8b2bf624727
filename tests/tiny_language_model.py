"""A causal language model of a few thousand parameters, and data for it, made in seconds.

Its tokenizer knows bytes and single letters behind a space, so that the choices " A" to " D"
differ in one last token, as they do for real ones.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def make_model(folder: Path, *, seed: int = 0, chat: bool = True, positions: int = 2048) -> Path:
    """A random Llama in float32, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(chat: bool = True) -> Any:
    """Bytes, and letters that follow a space."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    vocabulary = {token: number for number, token in enumerate([*letters, *words])}
    model = BPE(vocabulary, [("Ġ", word[1]) for word in words])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def write_mmlu(folder: Path, questions: int = 2) -> Path:
    """Questions in MMLU's layout, all 57 subjects; invented, and labelled so."""
    from evaluators.benchmarks.mmlu_subjects import SUBJECTS

    for subject in SUBJECTS:
        for split, number in (("dev", 5), ("test", questions)):
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                for place in range(number):
                    text = f"Invented question {place} of {subject}, {split}?"
                    options = [f"{text[:8]} {place + at}" for at in range(4)]
                    csv.writer(file).writerow([text, *options, "ABCD"[place % 4]])
    return folder


def write_gsm8k(folder: Path, questions: int = 4) -> Path:
    """Problems in GSM8K's layout; invented, and labelled so."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": f"Invented problem: what is {place} plus 1000?",
            "answer": f"{place} + 1000 = {place + 1000}\n#### {place + 1000:,}",
        }
        for place in range(questions)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "test.jsonl").write_text(text, encoding="utf-8")
    return folder
