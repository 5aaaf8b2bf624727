import collections
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nan_merge.errors import CheckpointError, OutputError
from nan_merge.pickled import convert_pickled, pickled_files

STATE = {"b.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(3, dtype=torch.bfloat16)}


class Touch:
    """A pickle of it runs a command where it is opened by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def save(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def assert_holds(converted: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(converted)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_state_dict_is_converted_once(tmp_path: Path):
    path = save(tmp_path / "pytorch_model.bin", STATE)
    converted = convert_pickled(path)
    assert converted.name == "pytorch_model.safetensors"
    assert converted.is_relative_to(tmp_path / "cache")
    assert_holds(converted, STATE)
    before = converted.stat().st_mtime_ns
    assert convert_pickled(path) == converted
    assert converted.stat().st_mtime_ns == before


def test_a_changed_file_is_converted_anew_and_the_old_form_removed(tmp_path: Path):
    path = save(tmp_path / "m.pt", STATE)
    old = convert_pickled(path)
    new = convert_pickled(save(path, {"other": torch.zeros(9)}))
    assert_holds(new, {"other": torch.zeros(9)})
    assert not old.exists()


def test_files_of_old_torch_are_read_too(tmp_path: Path):
    path = save(tmp_path / "old.bin", STATE, _use_new_zipfile_serialization=False)
    assert_holds(convert_pickled(path), STATE)


def test_shared_storage_views_and_parameters_are_written_out(tmp_path: Path):
    table = torch.arange(12.0).view(4, 3)
    state = {
        "embed": table,
        "head": table,
        "part": table[1:3],
        "turned": table.T,
        "parameter": torch.nn.Parameter(table * 2),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "flag": torch.tensor([True, False]),
    }
    converted = convert_pickled(save(tmp_path / "m.pth", state))
    assert_holds(converted, {name: value.detach().contiguous() for name, value in state.items()})


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}},
        {"model": collections.OrderedDict(STATE), "args": {"lr": 0.1}},
        {"model_state_dict": STATE},
        {f"module.{name}": value for name, value in STATE.items()},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}, "name": "clip"},
        {f"_orig_mod.{name}": value for name, value in STATE.items()},
        {**STATE, "_extra_state": None, "version": 2},
    ],
    ids=["lightning", "model", "model_state_dict", "module", "open_clip", "compiled", "extras"],
)
def test_the_weights_are_found_where_training_code_puts_them(tmp_path: Path, content: object):
    assert_holds(convert_pickled(save(tmp_path / "m.pt", content)), STATE)


def test_a_prefix_stays_where_not_all_names_have_it(tmp_path: Path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_holds(convert_pickled(save(tmp_path / "m.pt", state)), state)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "nested"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path, form: str):
    trap, path = tmp_path / "touched", tmp_path / "evil.bin"
    if form == "bare":
        path.write_bytes(pickle.dumps(Touch(trap)))
    elif form == "nested":
        save(path, {"state_dict": STATE, "args": Touch(trap)})
    else:
        save(path, {**STATE, "x": Touch(trap)}, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.bin.*not opened.*weights_only=False"):
        convert_pickled(path)
    assert not trap.exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_module_that_a_pickle_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "import_trap.py").write_text("class Loot: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "evil.pt"
    save(path, STATE)
    content = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(content, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                data = b"\x80\x02cimport_trap\nLoot\n)\x81."
            target.writestr(item.filename, data)
    path.write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match=r"import_trap\.Loot"):
        convert_pickled(path)
    assert "import_trap" not in sys.modules


def test_a_whole_module_is_refused_with_the_way_to_convert_it(tmp_path: Path):
    path = save(tmp_path / "zeroshot.pt", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"zeroshot.*Linear.*save_model"):
        convert_pickled(path)


def test_torchscript_is_refused(tmp_path: Path):
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"\x80\x02}.")
        archive.writestr("script/version", b"3\n")
    with pytest.raises(CheckpointError, match=r"script\.pt is a TorchScript archive"):
        convert_pickled(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"a": torch.ones(2), "deep": {"b": torch.ones(2)}}, "'deep' is a table of tensors"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is .*complex64, which cannot be merged"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is torch.sparse_coo"),
        ({"bomb": torch.ones(1).expand(1 << 40)}, "'bomb' .* less data than its shape"),
    ],
)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(
    tmp_path: Path, content: object, message: str
):
    with pytest.raises(CheckpointError, match=message):
        convert_pickled(save(tmp_path / "m.pt", content))
    assert not list((tmp_path / "cache").rglob("*partial*"))


@pytest.mark.parametrize("kept", [0, 10, 300, -40])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int):
    path = save(tmp_path / "cut.bin", STATE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.bin"):
        convert_pickled(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"Cannot read .*gone\.bin"):
        convert_pickled(tmp_path / "gone.bin")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"Cannot write .*converted"):
        convert_pickled(save(tmp_path / "m.pt", STATE))


def test_shards_follow_their_index(tmp_path: Path):
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, key in zip(names, STATE, strict=True):
        save(tmp_path / name, {key: STATE[key]})
    save(tmp_path / "training_args.bin", {"lr": 1})
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip(STATE, names, strict=True))}))
    assert [path.name for path in pickled_files(tmp_path)] == names
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 files.*00002-of-00002"):
        pickled_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    with pytest.raises(CheckpointError, match="no file of this folder"):
        pickled_files(tmp_path)


def test_what_training_leaves_is_no_model(tmp_path: Path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / name).touch()
    assert pickled_files(tmp_path) == ()
    (tmp_path / "finetuned.pt").touch()
    assert pickled_files(tmp_path) == (tmp_path / "finetuned.pt",)
    (tmp_path / "zeroshot.pt").touch()
    with pytest.raises(CheckpointError, match=r"finetuned\.pt, zeroshot\.pt.*Give the path"):
        pickled_files(tmp_path)
