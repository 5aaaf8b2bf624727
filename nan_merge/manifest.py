"""What lies beside the weights: config, tokenizer files, index, model card, and the manifest.

The manifest is written last. It says which merge made the folder, from what, with which numbers,
and holds a hash of every tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import INDEX_NAME
from nan_merge.fingerprint import digest_file, digest_text, fingerprint
from nan_merge.hub import is_own_file
from nan_merge.json_file import read_json_table
from nan_merge.measured import Measured
from nan_merge.plan import MergePlan
from nan_merge.publish import write_text_atomically
from nan_merge.result_config import write_head_ties
from nan_merge.shard import ShardRecord
from nan_merge.token_ids import write_token_ids
from nan_merge.tokenizer_files import write_tokenizer

MANIFEST_NAME = "merge_manifest.json"
# Raise it when the same recipe would give other bytes than before.
ARITHMETIC_VERSION = 1
# What is copied beside the weights; anything else in a model's folder is its owner's.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)


def merge_key(plan: MergePlan, inputs: Sequence[str]) -> str:
    """Digest of everything that decides a merge's content: recipe, weights, arithmetic.

    Args:
        plan: The merge.
        inputs: Fingerprints (or, for a key that holds on this machine alone, identities) of the
            base, if there is one, and of the models.
    """
    recipe = plan.recipe.model_dump(mode="json", by_alias=True)
    recipe.pop("base")
    for model in recipe["models"]:
        model.pop("path")
        model.pop("statistics")
    # What a file says counts, and not where it lies.
    table = recipe["coefficients"].pop("table")
    if table is not None:
        recipe["coefficients"]["table"] = digest_file(Path(table))
    recipe["modules"] = {
        module: source if isinstance(source, str) else "place"
        for module, source in recipe["modules"].items()
    }
    if not isinstance(recipe["config"], str):
        recipe["config"] = "place"
    for key, default in (("modules", {}), ("config", "base")):
        if recipe[key] == default:  # they came later; without them all is as before
            del recipe[key]
    content = {
        "arithmetic": ARITHMETIC_VERSION,
        "recipe": recipe,
        "inputs": list(inputs),
        "beside": {path.name: digest_file(path) for path in side_files(plan)},
    }
    if plan.statistics:
        content["statistics"] = [
            [fingerprint(each.checkpoint), sorted(each.inputs_first)] for each in plan.statistics
        ]
    if plan.vocabulary and plan.vocabulary.folder != plan.side_folder:
        files = own_files(plan.vocabulary.folder)
        content["tokenizer"] = {path.name: digest_file(path) for path in files}
    return digest_text(json.dumps(content, sort_keys=True))


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a ``merge_manifest.json``.

    Raises:
        CheckpointError: If it is no JSON table.
    """
    return read_json_table(path, "Remove its folder and merge again.")


def is_whole(folder: Path) -> bool:
    """Whether the files that a merge's manifest names are there, those of weights in full size."""
    manifest = read_manifest(folder / MANIFEST_NAME)
    files, beside = manifest.get("files"), manifest.get("beside", {})
    if not (isinstance(files, dict) and isinstance(beside, dict)):
        return False
    if not all((folder / str(name)).is_file() for name in beside):
        return False
    sizes = {name: entry.get("bytes") for name, entry in files.items() if isinstance(entry, dict)}
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def beside_hashes(folder: Path) -> dict[str, str]:
    """File's name -> SHA-256 of config, tokenizer and like files that a merge wrote."""
    return {name: digest_file(folder / name) for name in SIDE_FILES if (folder / name).is_file()}


def write_side_files(
    folder: Path,
    plan: MergePlan,
    measured: Measured,
    fingerprints: Sequence[str],
    files: Sequence[ShardRecord],
) -> None:
    """Write everything but the weights into a merged checkpoint's folder.

    Args:
        folder: Where the weights lie.
        plan: What was merged.
        measured: With which numbers.
        fingerprints: Of the base, if there is one, then of the models.
        files: Records of the files of weights.
    """
    _copy_side_files(plan, folder)
    if len(plan.shards) > 1:
        write_text_atomically(folder / INDEX_NAME, _dump(_index(plan)))
    manifest = make_manifest(plan, measured, fingerprints, files)
    manifest["beside"] = beside_hashes(folder)
    write_text_atomically(folder / "README.md", _model_card(plan, manifest))
    write_text_atomically(folder / MANIFEST_NAME, _dump(manifest))


def make_manifest(
    plan: MergePlan,
    measured: Measured,
    fingerprints: Sequence[str],
    files: Sequence[ShardRecord],
) -> dict[str, Any]:
    """The manifest of a merge; the same merge gives the same manifest."""
    models = [model.name for model in plan.models]
    inputs = [*(["base"] if plan.base else []), *models, *(place.name for place in plan.places)]
    repairs: dict[str, dict[str, float]] = {}
    for record in files:
        for repair, of_tensors in record.repairs.items():
            repairs.setdefault(repair, {}).update(of_tensors)
    manifest = {
        "format": 1,
        "nan_merge": version("nan-merge"),
        "merge_key": merge_key(plan, fingerprints),
        "recipe": plan.recipe.as_json(),
        "fingerprints": [
            {"name": name, "fingerprint": each}
            for name, each in zip(inputs, fingerprints, strict=True)
        ],
        **measured.table.as_json(),
        "magnitude_thresholds": dict(zip(models, measured.thresholds, strict=False)),
        "majority_sign": measured.majority_sign,
        "files": {
            record.file_name: {
                "bytes": record.num_bytes,
                "device": record.device,
                "xxh3": record.tensors,
            }
            for record in files
        },
    }
    return manifest | {"repairs": repairs} if repairs else manifest


def side_files(plan: MergePlan) -> list[Path]:
    """Config, tokenizer and processor files of the model that the result takes after."""
    return own_files(plan.side_folder)


def own_files(folder: Path) -> list[Path]:
    """The files of a model's folder that belong beside its weights, links elsewhere left out."""
    paths = [folder / name for name in SIDE_FILES]
    return [path for path in paths if is_own_file(path)]


def _copy_side_files(plan: MergePlan, folder: Path) -> None:
    for path in side_files(plan):
        shutil.copyfile(path, folder / path.name)
    if words := plan.vocabulary:
        write_tokenizer(folder, words.folder, words.added, words.folders, words.num_rows)
        if words.folder != plan.side_folder:
            write_token_ids(folder, plan.side_folder, words.folder)
    write_head_ties(folder, [tensor.name for tensor in plan.tensors])
    config_path = folder / "config.json"
    if plan.recipe.dtype and config_path.is_file():
        config = json.loads(config_path.read_bytes())
        _set_dtype(config, plan.recipe.dtype)
        write_text_atomically(config_path, _dump(config))


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Name the type of the weights, also in the parts of a model of several (`text_config`)."""
    for key, value in config.items():
        if key in ("torch_dtype", "dtype"):
            config[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _set_dtype(value, dtype)


def _index(plan: MergePlan) -> dict[str, Any]:
    weight_map = {tensor.name: shard.file_name for shard in plan.shards for tensor in shard.tensors}
    return {"metadata": {"total_size": plan.output_bytes}, "weight_map": weight_map}


def _model_card(plan: MergePlan, manifest: Mapping[str, Any]) -> str:
    recipe = json.dumps(manifest["recipe"], indent=2)  # ASCII: nothing in it can end the block
    return (
        "---\ntags:\n- merge\n- nan-merge\n---\n"
        f"# A merge of {len(plan.models)} models by {plan.recipe.method.name}\n\n"
        f"Recipe, as `nan-merge merge` takes it:\n\n````json\n{recipe}\n````\n\n"
        f"Norms, coefficients and hashes: `{MANIFEST_NAME}`.\n"
    )


def _dump(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
