import threading
import time
import weakref

import pytest

from nan_merge.workers import current_reader, run_chunks, run_on_threads, scratch_array


class Result:
    """Something that is gone when nobody holds it."""


def test_results_come_in_order_whoever_is_done_first():
    def work(place: int) -> int:
        time.sleep(0.02 * (5 - place))
        return place

    assert list(run_on_threads(work, range(5), 3)) == list(range(5))


def test_a_result_that_was_given_out_is_not_kept():
    """Counts of magnitudes are a megabyte for every chunk, and a large model has thousands."""
    seen: list[weakref.ref[Result]] = []
    for result in run_on_threads(lambda _: Result(), range(20), 2):
        assert [kept for kept in seen if kept() is not None] == []
        seen.append(weakref.ref(result))
        del result
    assert len(seen) == 20


@pytest.mark.parametrize("run", [run_on_threads, run_chunks])
def test_the_first_error_ends_it(run):
    def work(place: int) -> int:
        if place == 3:
            raise ValueError("chunk 3")
        return place

    found = []
    with pytest.raises(ValueError, match="chunk 3"):
        for result in run(work, list(range(8)), 2):
            found.append(result)
    assert found == [0, 1, 2]


def test_every_thread_has_a_reader_and_memory_of_its_own():
    both = threading.Barrier(2, timeout=30)

    def work(_: int) -> tuple[int, int]:
        both.wait()
        return id(current_reader()), scratch_array("rows", (3,), float).ctypes.data

    (reader, memory), (other_reader, other_memory) = run_on_threads(work, range(2), 2)
    assert reader != other_reader
    assert memory != other_memory
