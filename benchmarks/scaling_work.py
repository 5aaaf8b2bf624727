"""What a merge or a sweep of a model of any size consists of: stages of tasks with their costs.

The files of the result are packed by the engine itself, so a layer that is larger than a file may
be is one task here as there. Costs per byte and per token come from a profile that
`scaling.py calibrate` measured; a profile is what `json.load` makes of its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.scaling_model import Cluster, Stage, Work
from nan_merge.layout import AlignedTensor, ShardPlan, pack_shards
from nan_merge.safetensors_file import TensorInfo

SHARD_BYTES = 1_000_000_000  # the recipe's default

# Llama 3's published shapes: hidden, intermediate, layers, key-value width, vocabulary, tied head.
LLAMAS: dict[str, tuple[int, int, int, int, int, bool]] = {
    "1.24B": (2048, 8192, 16, 512, 128_256, True),
    "8B": (4096, 14_336, 32, 1024, 128_256, False),
    "70B": (8192, 28_672, 80, 1024, 128_256, False),
    "405B": (16_384, 53_248, 126, 1024, 128_256, False),
}


@dataclass(frozen=True)
class Model:
    """A model's size as the engine sees it.

    Attributes:
        shards: Files of its merge.
        parameters: Its number.
    """

    shards: tuple[ShardPlan, ...]
    parameters: int

    @property
    def num_bytes(self) -> int:
        """Bytes of one checkpoint."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def num_tensors(self) -> int:
        """Tensors of one checkpoint."""
        return sum(len(shard.tensors) for shard in self.shards)


def llama_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor's name -> shape, in the order in which a checkpoint is sorted."""
    hidden, inner, layers, narrow, vocabulary, tied = LLAMAS[name]
    shapes: dict[str, tuple[int, ...]] = {} if tied else {"lm_head.weight": (vocabulary, hidden)}
    shapes["model.embed_tokens.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "mlp.down_proj.weight": (hidden, inner),
            at + "mlp.gate_proj.weight": (inner, hidden),
            at + "mlp.up_proj.weight": (inner, hidden),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "self_attn.k_proj.weight": (narrow, hidden),
            at + "self_attn.o_proj.weight": (hidden, hidden),
            at + "self_attn.q_proj.weight": (hidden, hidden),
            at + "self_attn.v_proj.weight": (narrow, hidden),
        }
    return shapes | {"model.norm.weight": (hidden,)}


def model_of(
    shapes: dict[str, tuple[int, ...]], num_models: int, shard_bytes: int = SHARD_BYTES
) -> Model:
    """A family of checkpoints in bfloat16: a base and ``num_models`` fine-tunes."""
    tensors: list[AlignedTensor] = []
    for name, shape in shapes.items():
        info = TensorInfo(name, "", torch.bfloat16, shape, 0)
        tensors.append(AlignedTensor(name, info, (info,) * num_models))
    shards = tuple(pack_shards(tensors, None, shard_bytes))
    parameters = sum(tensor.reference.num_elements for tensor in tensors)
    return Model(shards, parameters)


def merge_stages(model: Model, method: dict[str, Any], num_merges: int = 1) -> list[Stage]:
    """A merge, or several of one method over the same inputs, which share every reading.

    Args:
        model: What is merged.
        method: The method's entry in a profile.
        num_merges: How many results.
    """
    serial = method["serial"]["fixed"] + method["serial"]["per_tensor"] * model.num_tensors
    stages: list[Stage] = []
    for place, stage in enumerate(method["stages"]):
        last = place == len(method["stages"]) - 1
        results = num_merges if last else 1  # statistics are taken once for all of them
        works = tuple(
            Work(
                read=shard.input_bytes,
                write=shard.num_bytes * num_merges if last else 0.0,
                compute=shard.input_bytes * stage["compute_seconds_per_byte"] * results,
            )
            for shard in model.shards
        )
        stages.append(Stage(stage["label"], works, serial if last else 0.0))
    return stages


def evaluation_stage(
    model: Model, samples: dict[str, Any], workload: dict[str, Any], num_models: int, workers: int
) -> Stage:
    """Serving models, one actor per worker; where actors outnumber models, several load one.

    Args:
        model: Size of each of the models.
        samples: Measured costs: seconds to load a byte, to take in and to make a token.
        workload: How many samples, of how many tokens.
        num_models: How many models are scored.
        workers: How many actors there are.
    """
    actors = max(1, workers // num_models)
    tokens = (
        workload["prompt_tokens"] * samples["prefill_seconds_per_token_and_parameter"]
        + workload["new_tokens"] * samples["decode_seconds_per_token_and_parameter"]
    )
    load = samples["load_seconds_per_byte"] * model.num_bytes
    scoring = workload["samples"] / actors * tokens * model.parameters
    work = Work(read=model.num_bytes, write=0.0, compute=load + scoring)
    return Stage("evaluate", (work,) * (num_models * actors))


def cluster_of(
    profile: dict[str, Any], storage: dict[str, Any], workers: int, workers_per_node: int
) -> Cluster:
    """Workers like the one that was measured, on storage that is given.

    A worker reads and writes no faster than it was measured to, and no faster than one stream of
    the storage goes.
    """
    own = profile["storage"]
    stream = storage.get("stream", float("inf"))
    return Cluster(
        workers=workers,
        workers_per_node=workers_per_node,
        worker_read=min(own["worker_read"], stream),
        worker_write=min(own["worker_write"], stream),
        storage_read=storage["read"],
        storage_write=storage["write"],
        node_network=storage.get("node_network", float("inf")),
        dispatch=profile["dispatch_seconds"],
    )
