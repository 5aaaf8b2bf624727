"""The run file of Table 1 over towers and sets that a test makes in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from pipelines.config import RunConfig
from tests.clip_set_folders import write_class_folders, write_original, write_parquet

TABLE1 = Path(__file__).parents[1] / "configs/paper/table1_vit_b32.yaml"
SETS = ("SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD")
FORMS = ("task_vectors", "transformers", "open_clip", "ours", "ours", "ours", "ours", "ours")


class Here:
    """Workers that work in this process, one thing after another, and count."""

    def __init__(self) -> None:
        self.num_tasks = self.num_items = 0
        self.notes: list[str] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def processes(self, stage: str) -> int:
        return 1

    def run_tasks(self, name: str, tasks: Sequence[Any], stage: str = "train") -> list[Any]:
        self.num_tasks += len(tasks)
        return [task.function(*task.arguments) for task in tasks]

    def run_streams(
        self, name: str, tasks: Sequence[Any], total: int, steps_of: Any, stage: str = "train"
    ) -> None:
        self.num_tasks += len(tasks)
        for task in tasks:
            for _ in task.function(*task.arguments):
                pass

    def serve_models(self, name: str, jobs: Sequence[Any], on_result: Any, samples_of: Any) -> None:
        for job in jobs:
            model = job.load(*job.arguments)
            for item in job.items:
                self.num_items += 1
                on_result(job, item, job.work(model, item))


def table1_content(path: Path = TABLE1) -> dict[str, Any]:
    """The content of one of the paper's run files."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def small_table1(
    made: Path,
    out: Path,
    *,
    clip: str | None = "towers/clip",
    data: Path | None = Path("data"),
    models: str = "mixed",
    paths: dict[int, Path] | None = None,
    whole: bool = False,
) -> RunConfig:
    """The paper's run with what `write_data` and `write_towers` made.

    Unless it is to be ``whole``, without the rows that read training images or learn.
    """
    content = table1_content()
    folder = made / "towers" / models
    content["models"] = [
        {"name": name, "path": str((paths or {}).get(place) or _found(folder, name))}
        for place, name in enumerate(SETS)
    ]
    content |= {"run_folder": str(out / "run"), "cache": str(out / "cache")}
    content["clip"] = str(made / clip) if clip is not None else None
    content["backbone"] = "nan-merge-mini"
    content["evaluate"] |= {"data": str(made / data) if data is not None else None}
    content["statistics"] = {"num_examples": 16, "batch_size": 8}
    kept = []
    for entry in content["merges"]:
        if "adamerging" in entry:
            entry["adamerging"] |= {"steps": 2, "images_per_task": 4}
        if whole or not ("adamerging" in entry or entry["method"] in ("fisher", "regmean")):
            kept.append(entry)
    content["merges"] = kept
    content["track"] = {"mlflow": False}
    return RunConfig.model_validate(content)


def _found(folder: Path, name: str) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.stem == name)


def write_training_data(root: Path) -> None:
    """Training images beside the test images that `write_data` wrote, in class folders."""
    for name in SETS:
        write_class_folders(name, root / name, split="train")


def write_data(root: Path) -> None:
    """Test images of the eight sets, drawn, in all layouts."""
    for place, name in enumerate(SETS):
        folder = root / name
        folder.mkdir(parents=True)
        if place % 3 == 0:
            write_original(name, folder)
        elif place % 3 == 1:
            write_class_folders(name, folder)
        else:
            write_parquet(name, folder)


def write_towers(root: Path) -> None:
    """A CLIP and a fine-tune of its image tower for each set: as ours, and in mixed forms."""
    from evaluators.backends.clip import build_clip
    from evaluators.backends.clip_checkpoints import save_clip, save_image_tower

    save_clip(build_clip("nan-merge-mini", seed=0), root / "clip")
    (root / "mixed").mkdir()
    for place, (name, form) in enumerate(zip(SETS, FORMS, strict=True)):
        tuned = build_clip("nan-merge-mini", seed=0)
        generator = torch.Generator().manual_seed(place)
        with torch.no_grad():
            for parameter in tuned.model.visual.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        save_image_tower(tuned.tower, root / "ours" / name)
        if form == "task_vectors":
            tensors = tuned.model.state_dict()
            kept = {f"model.{n}": t for n, t in tensors.items() if not n.startswith("transformer.")}
            torch.save(kept, root / "mixed" / f"{name}.pt")
        elif form == "open_clip":
            save_clip(tuned, root / "mixed" / name)
        elif form == "transformers":
            write_hf_vision_tower(tuned, root / "mixed" / name)
        else:
            save_image_tower(tuned.tower, root / "mixed" / name)


def write_hf_vision_tower(clip: Any, folder: Path) -> None:
    """An image tower as transformers saves one, with its projection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision, tensors = clip.tower.model_config["vision_cfg"], clip.model.visual.state_dict()
    config = CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=4 * vision["width"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision["head_width"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        projection_dim=clip.tower.model_config["embed_dim"],
        hidden_act="gelu",
    )
    model = CLIPVisionModelWithProjection(config)
    theirs = {
        "vision_model.embeddings.class_embedding": tensors["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tensors["conv1.weight"],
        "visual_projection.weight": tensors["proj"].T.contiguous(),
    }
    for end in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{end}"] = tensors[f"ln_pre.{end}"]
        theirs[f"vision_model.post_layernorm.{end}"] = tensors[f"ln_post.{end}"]
        for layer in range(vision["layers"]):
            hf, ours = f"vision_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            parts = tensors[f"{ours}.attn.in_proj_{end}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                theirs[f"{hf}.self_attn.{letter}_proj.{end}"] = part.contiguous()
            for name, other in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                theirs[f"{hf}.{name}.{end}"] = tensors[f"{ours}.{other}.{end}"]
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    model.save_pretrained(folder)
