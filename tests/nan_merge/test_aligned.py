"""Memory for reading and writing begins at a page, and so do the data of what is written."""

import numpy as np
import pytest

from nan_merge.aligned import PAGE, aligned_empty
from nan_merge.dtypes import DType
from nan_merge.safetensors_file import make_header


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, PAGE)])
def test_it_begins_at_a_page(shape: tuple[int, ...], dtype: type):
    found = aligned_empty(shape, dtype)
    assert found.ctypes.data % PAGE == 0
    assert found.shape == shape
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    found[...] = 1  # it is ours to write
    assert found.sum() == found.size


@pytest.mark.parametrize("length", [0, 1, 4000, 4031, 4032, 4033, 5000])
def test_data_begin_at_a_page_whatever_the_header_is_long(length: int):
    assert len(make_header([("w" * length, DType.F32, (2,))])) % PAGE == 0
