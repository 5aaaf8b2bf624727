"""What lies beside the weights: config, tokenizer files, index, model card, and the manifest.

The manifest is written last. It says which merge made the folder, from what, with which numbers,
and holds a hash of every file of weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import INDEX_NAME, Checkpoint
from nan_merge.errors import CheckpointError
from nan_merge.fingerprint import digest_text, fingerprint
from nan_merge.measure import Measured
from nan_merge.plan import MergePlan
from nan_merge.publish import write_text_atomically

MANIFEST_NAME = "merge_manifest.json"
# Raise it when the same recipe would give other bytes than before.
ARITHMETIC_VERSION = 1
COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def merge_key(plan: MergePlan) -> str:
    """Digest of everything that decides the bytes of a merge: recipe, weights, arithmetic."""
    recipe = plan.recipe.model_dump(mode="json", by_alias=True)
    recipe.pop("base")
    for model in recipe["models"]:
        model.pop("path")
    content = {
        "arithmetic": ARITHMETIC_VERSION,
        "recipe": recipe,
        "base": fingerprint(plan.base) if plan.base else None,
        "models": [fingerprint(model) for model in plan.models],
    }
    return digest_text(json.dumps(content, sort_keys=True))


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a ``merge_manifest.json``.

    Raises:
        CheckpointError: If it is no JSON table.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged. Remove its folder and merge again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged. Remove its folder and merge again.")
    return content


def write_side_files(
    folder: Path, plan: MergePlan, measured: Measured, key: str, files: Mapping[str, str]
) -> None:
    """Write everything but the weights into a merged checkpoint's folder.

    Args:
        folder: Where the weights lie.
        plan: What was merged.
        measured: With which numbers.
        key: The merge's key.
        files: File name -> SHA-256 of its content.
    """
    _copy_side_files(plan, folder)
    if len(plan.shards) > 1:
        write_text_atomically(folder / INDEX_NAME, _dump(_index(plan)))
    manifest = make_manifest(plan, measured, key, files)
    write_text_atomically(folder / "README.md", _model_card(plan, manifest))
    write_text_atomically(folder / MANIFEST_NAME, _dump(manifest))


def make_manifest(
    plan: MergePlan, measured: Measured, key: str, files: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest of a merge; the same merge gives the same manifest."""
    recipe = plan.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    thresholds = measured.statistics.magnitude_thresholds
    names = [model.name for model in plan.models]
    return {
        "format": 1,
        "nan_merge": version("nan-merge"),
        "merge_key": key,
        "recipe": recipe,
        "fingerprints": _fingerprints(plan),
        **measured.table.as_json(),
        "magnitude_thresholds": dict(zip(names, thresholds, strict=False)),
        "majority_sign": measured.statistics.majority_sign,
        "files": dict(sorted(files.items())),
    }


def _fingerprints(plan: MergePlan) -> dict[str, str]:
    checkpoints: list[Checkpoint] = [*([plan.base] if plan.base else []), *plan.models]
    return {checkpoint.name: fingerprint(checkpoint) for checkpoint in checkpoints}


def _copy_side_files(plan: MergePlan, folder: Path) -> None:
    source = plan.reference.folder
    for path in sorted(source.iterdir()):
        generated = path.name in (INDEX_NAME, MANIFEST_NAME, "README.md")
        if path.is_file() and path.suffix in COPIED_SUFFIXES and not generated:
            shutil.copyfile(path, folder / path.name)
    config_path = folder / "config.json"
    if plan.recipe.dtype and config_path.is_file():
        config = json.loads(config_path.read_bytes())
        for key in ("torch_dtype", "dtype"):
            if key in config:
                config[key] = plan.recipe.dtype
        write_text_atomically(config_path, _dump(config))


def _index(plan: MergePlan) -> dict[str, Any]:
    weight_map = {tensor.name: shard.file_name for shard in plan.shards for tensor in shard.tensors}
    return {"metadata": {"total_size": plan.output_bytes}, "weight_map": weight_map}


def _model_card(plan: MergePlan, manifest: Mapping[str, Any]) -> str:
    models = "\n".join(f"- {model.name}: `{model.path}`" for model in plan.recipe.models)
    recipe = json.dumps(manifest["recipe"], indent=2, ensure_ascii=False)
    return (
        "---\ntags:\n- merge\n- nan-merge\n---\n"
        f"# A merge of {len(plan.models)} models by {plan.recipe.method.name}\n\n"
        f"Base model: `{plan.recipe.base}`\n\nFine-tuned models:\n\n{models}\n\n"
        f"Recipe, as `nan-merge merge` takes it:\n\n```yaml\n{recipe}\n```\n\n"
        f"Norms, coefficients and hashes: `{MANIFEST_NAME}`.\n"
    )


def _dump(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
