"""Write a Llama of random weights and fine-tunes of it, to measure merging on.

    python benchmarks/synthetic_llama.py FOLDER --size 1.24b --experts 2

writes FOLDER/base, FOLDER/expert0, ... in bfloat16, each one file, with the config of a Llama.
Fine-tunes differ from the base by Gaussian noise of about a tenth of a weight's size, as long
fine-tuning does; bfloat16 rounds most of it to few distinct values, which is what selection by
magnitude meets in practice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = {  # hidden, intermediate, layers, key-value width, vocabulary
    "10m": (128, 512, 4, 64, 32_000),
    "0.1b": (640, 2560, 12, 320, 48_000),
    "0.3b": (1024, 4096, 16, 256, 64_000),
    "1.24b": (2048, 8192, 16, 512, 128_256),
}


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors; the output head is tied to the embedding."""
    hidden, inner, layers, narrow, vocabulary = SIZES[size]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (narrow, hidden),
            prefix + "self_attn.v_proj.weight": (narrow, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    return found | {"model.norm.weight": (hidden,)}


def config(size: str) -> dict[str, object]:
    """What transformers and other tools need to know about it."""
    hidden, inner, layers, narrow, vocabulary = SIZES[size]
    head = 64
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": narrow // head,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write_family(folder: Path, size: str, num_experts: int) -> None:
    """Write the base and its fine-tunes, unless they are there."""
    names = ["base", *(f"expert{number}" for number in range(num_experts))]
    for place, name in enumerate(names):
        target = folder / name
        if (target / "model.safetensors").is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        base = torch.Generator().manual_seed(0)
        own = torch.Generator().manual_seed(place)
        tensors: dict[str, torch.Tensor] = {}
        for tensor_name, shape in shapes(size).items():
            values = torch.randn(shape, generator=base).mul_(0.02)
            if place:
                values.add_(torch.randn(shape, generator=own), alpha=0.002)
            tensors[tensor_name] = values.bfloat16()
        partial = target / "model.partial"
        save_file(tensors, partial, {"format": "pt"})
        partial.replace(target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(config(size), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1.24b")
    parser.add_argument("--experts", type=int, default=2)
    arguments = parser.parse_args()
    write_family(arguments.folder, arguments.size, arguments.experts)
