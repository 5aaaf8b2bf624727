import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from nan_merge.dtypes import DType
from nan_merge.errors import CheckpointError
from nan_merge.safetensors_file import (
    BlockReader,
    make_header,
    read_header,
    tensor_bytes,
)


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_blocks_equal_what_the_reference_library_reads(tmp_path: Path, dtype: DType):
    tensors = {
        "a": torch.arange(24).reshape(2, 3, 4).to(dtype.torch),
        "b": torch.tensor(1).to(dtype.torch),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    header = read_header(path)
    with BlockReader() as reader:
        assert torch.equal(reader.read(header["a"]), tensors["a"].flatten())
        assert torch.equal(reader.read(header["a"], 5, 7), tensors["a"].flatten()[5:12])
        assert torch.equal(reader.read(header["b"]), tensors["b"].view(1))


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_the_reference_library_reads_what_we_write(tmp_path: Path, dtype: DType):
    tensors = {
        "é\n": torch.arange(6).reshape(2, 3).to(dtype.torch),
        "scalar": torch.tensor(1).to(dtype.torch),
        "empty": torch.zeros(0, 4).to(dtype.torch),
    }
    layout = [(name, dtype, tuple(value.shape)) for name, value in tensors.items()]
    path = tmp_path / "x.safetensors"
    path.write_bytes(make_header(layout) + b"".join(map(tensor_bytes, tensors.values())))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: value.tolist() for name, value in tensors.items()
        }


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not JSON"),
        (b"[]", b"", "not a table"),
        (b'{"a": 1}', b"", "does not describe tensor 'a'"),
        ({"a": {"dtype": "F32"}}, b"", "does not describe"),
        ({"a": entry(shape=[-1])}, b"\0" * 8, "impossible shape"),
        ({"a": entry(shape=[2.0])}, b"\0" * 8, "impossible shape"),
        ({"a": entry(shape="2")}, b"\0" * 8, "impossible shape"),
        ({"a": entry(shape=[True])}, b"\0" * 8, "impossible shape"),
        ({"a": entry(offsets=[0, 2**70])}, b"\0" * 8, "impossible shape"),
        ({"a": entry(dtype="F8_E4M3")}, b"\0" * 8, "type F8_E4M3, which cannot be merged"),
        ({"a": entry(shape=[3])}, b"\0" * 8, "another size than its shape"),
        ({"a": entry(), "b": entry()}, b"\0" * 8, "overlaps"),
        ({"a": entry(offsets=[8, 16])}, b"\0" * 16, "leaves a hole"),
        ({"a": entry()}, b"\0" * 7, "1 bytes are missing at its end: the file was cut short"),
        ({"a": entry()}, b"\0" * 9, "1 bytes that nothing describes"),
        (b'{"a": 1, "a": 1}', b"", "names a tensor twice"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, data: bytes, message: str):
    path = write_raw(tmp_path / "liar.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "liar.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "short.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cut short"):
        read_header(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_but_never_crashes(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "fuzz.safetensors"
    save_file({"a.0.w": torch.ones(3, 2), "b": torch.arange(4)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    with BlockReader() as reader:
        for tensor in tensors.values():
            assert len(reader.read(tensor)) == tensor.num_elements


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path):
    path = tmp_path / "shrinking.safetensors"
    save_file({"a": torch.ones(100)}, path)
    tensor = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-40])
    with BlockReader() as reader, pytest.raises(CheckpointError, match=r"shrinking.*tensor 'a'"):
        reader.read(tensor)
