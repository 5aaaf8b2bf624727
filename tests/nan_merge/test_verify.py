"""A merged checkpoint is what its manifest says, or every difference is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nan_merge import MergeRecipe, merge_checkpoint, verify_checkpoint
from nan_merge.aligned import PAGE
from nan_merge.blocks import CHUNK_ELEMENTS
from nan_merge.errors import CheckpointError
from nan_merge.safetensors_file import read_header, tensor_bytes


@pytest.fixture
def merged(family: dict[str, str], tmp_path: Path) -> Path:
    """A merge in three files."""
    recipe = {
        "base": family["base"], "models": [family["math"], family["code"]],
        "method": "task_arithmetic", "shard_bytes": 300,
    }  # fmt: skip
    merge_checkpoint(MergeRecipe.model_validate(recipe), tmp_path / "out")
    return tmp_path / "out"


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(folder)
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith(f"{folder} is not what its merge_manifest.json says")
    assert last.startswith("Copy it again from where it is whole, or remove the folder and merge")
    return [line.removeprefix("  - ") for line in lines]


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_untouched_merge_is_whole(merged: Path):
    seen: list[tuple[int, int]] = []
    verified = verify_checkpoint(merged, 2, lambda done, total: seen.append((done, total)))
    tensors = {
        name: t for path in merged.glob("*.safetensors") for name, t in load_file(path).items()
    }
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert (verified.num_files, verified.num_tensors) == (3, len(tensors))
    assert verified.num_bytes == num_bytes
    assert seen[-1] == (num_bytes, num_bytes)


def test_one_changed_bit_names_file_and_tensor(merged: Path):
    path = merged / "model-00002-of-00003.safetensors"
    flip_byte(path, -1)
    assert problems_of(merged) == [
        f"{path}: tensor layers.1.weight holds other data than was written (between elements 0 and "
        "599,999, as far as the hashes tell)"
    ]


def test_a_change_in_a_long_tensor_is_narrowed_down(write_checkpoint, tmp_path: Path):
    values = torch.zeros(CHUNK_ELEMENTS + 10, dtype=torch.uint8)
    tensors = {"long": values, "w": torch.ones(3)}
    recipe = {"models": [write_checkpoint("m", tensors)], "method": "passthrough"}
    merge_checkpoint(MergeRecipe.model_validate(recipe), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    flip_byte(path, -1 - 3 * 4)  # the three floats lie behind it
    (problem,) = problems_of(tmp_path / "out")
    assert "between elements 16,777,216 and 16,777,225" in problem


def test_every_problem_is_listed_at_once(merged: Path):
    first, second, third = sorted(merged.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-7])
    # A name of the same length, so that the size stays.
    third.write_bytes(third.read_bytes().replace(b'"layers.10.weight"', b'"layers.10.weighs"'))
    (merged / "pytorch_model.bin").write_bytes(b"?")
    (merged / "config.json").write_text("{")
    index = merged / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["scale"] = first.name
    index.write_text(json.dumps(content))
    size = second.stat().st_size
    assert set(problems_of(merged)) == {
        f"{first} is missing",
        f"{second} has {size:,} bytes, the manifest says {size + 7:,}",
        f"{merged / 'pytorch_model.bin'} is no part of this merge; whoever loads the folder may "
        "load it too",
        f"{merged / 'config.json'} holds other data than was written",
        f"{index} places tensor scale in {first.name}, the manifest in {third.name}",
        f"{third}: tensor layers.10.weight is missing",
        f"{third}: tensor layers.10.weighs is no part of this merge",
    }


def test_the_index_must_be_there_and_readable(merged: Path):
    index = merged / "model.safetensors.index.json"
    index.write_text("[]")
    assert problems_of(merged) == [f"{index} is damaged: it has no `weight_map`"]
    index.unlink()
    assert problems_of(merged) == [f"{index} is missing; without it 3 files are no checkpoint"]


def test_a_file_of_another_merge_of_the_same_models(merged: Path):
    path = merged / "model-00001-of-00003.safetensors"
    other = path.read_bytes()[:PAGE] + b"".join(
        tensor_bytes(load_file(path)[name] * 2) for name in read_header(path)
    )
    assert len(other) == path.stat().st_size
    path.write_bytes(other)
    problems = problems_of(merged)
    assert len(problems) == 3  # the empty tensor is the same
    assert all("holds other data than was written" in problem for problem in problems)


def test_long_lists_are_cut(merged: Path):
    manifest = json.loads((merged / "merge_manifest.json").read_text())
    manifest["files"]["model-00001-of-00003.safetensors"]["xxh3"] |= {
        f"layers.0.{place}": [] for place in range(40)
    }
    (merged / "merge_manifest.json").write_text(json.dumps(manifest))
    problems = problems_of(merged)
    assert len(problems) == 21
    assert problems[-1] == "... and 60 more"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "holds no merge_manifest.json, so there is nothing to compare it with"),
        ("[]", "merge_manifest.json is damaged"),
        ("\0", "merge_manifest.json is damaged"),
        ("{}", "it has no `files`"),
        ('{"files": {"../x.safetensors": {"bytes": 1, "xxh3": {}}}}', "is no file of this folder"),
        ('{"files": {"/etc/x.safetensors": 1}}', "is no file of this folder"),
        ('{"files": {"x.safetensors": 1}}', "gives x.safetensors no size or hashes"),
        ('{"files": {"x.safetensors": {"bytes": 1, "xxh3": {"a": [1]}}}}', "tensor a, no hashes"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, files: str | None, message: str):
    if files is not None:
        (tmp_path / "merge_manifest.json").write_text(files)
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(tmp_path)
    assert message in str(caught.value)


def test_no_folder_at_all(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere is no folder. Give one that `nan-merge"):
        verify_checkpoint(tmp_path / "nowhere")


def test_config_and_tokenizer_files_have_hashes(family: dict[str, str], tmp_path: Path):
    for name, content in {"vocab.json": "{}", "tokenizer_config.json": '{"a": 1}'}.items():
        (Path(family["base"]) / name).write_text(content)
    recipe = {"base": family["base"], "models": [family["math"]], "method": "task_arithmetic"}
    folder = tmp_path / "out"
    merge_checkpoint(MergeRecipe.model_validate(recipe), folder)
    verify_checkpoint(folder)
    (folder / "README.md").write_text("A card is for people to change.")
    verify_checkpoint(folder)
    (folder / "tokenizer_config.json").write_text('{"a": 2}')
    (folder / "generation_config.json").write_text("{}")
    (folder / "vocab.json").unlink()
    assert problems_of(folder) == [
        f"{folder}/generation_config.json is no part of this merge; whoever loads the folder may "
        "load it too",
        f"{folder}/tokenizer_config.json holds other data than was written",
        f"{folder}/vocab.json is missing",
    ]


def test_a_manifest_without_hashes_of_configs_is_read_as_before(merged: Path):
    manifest = json.loads((merged / "merge_manifest.json").read_text())
    assert list(manifest.pop("beside")) == ["config.json"]
    (merged / "merge_manifest.json").write_text(json.dumps(manifest))
    (merged / "config.json").write_text('{"torch_dtype": "float32", "more": 1}')
    verify_checkpoint(merged)
    (merged / "config.json").write_text("{")
    assert problems_of(merged) == [f"{merged}/config.json is damaged: it is not JSON"]
