"""Arrays that wait for the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from occ_llm.calibration.spool import Spool
from occ_llm.calibration.sweep import batches_of

arrays = hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(max_dims=3, min_side=0))


@pytest.mark.parametrize("in_memory_bytes", [64, 2**20])
@given(st.lists(arrays, max_size=6))
def test_last_in_first_out_in_memory_and_on_disk(in_memory_bytes, rows):
    with Spool(in_memory_bytes) as spool:
        for row in rows:
            spool.push(row)
        assert len(spool) == len(rows)
        for row in reversed(rows):
            found = spool.pop()
            assert found.dtype == row.dtype
            np.testing.assert_array_equal(found, row)


@pytest.mark.parametrize("in_memory_bytes", [8, 2**20])
def test_pushes_after_pops_reuse_the_place(in_memory_bytes):
    with Spool(in_memory_bytes) as spool:
        spool.push(np.arange(5))
        spool.push(np.arange(100))
        spool.pop()
        spool.push(np.ones((2, 3), np.float32))
        np.testing.assert_array_equal(spool.pop(), np.ones((2, 3)))
        np.testing.assert_array_equal(spool.pop(), np.arange(5))


def test_a_popped_array_is_the_callers_own():
    with Spool() as spool:
        spool.push(np.zeros(3))
        array = spool.pop()
        array += 1
        spool.push(np.zeros(3))
        np.testing.assert_array_equal(spool.pop(), np.zeros(3))


def test_an_array_that_is_not_contiguous_comes_back_whole():
    x = np.arange(12).reshape(3, 4).T
    with Spool() as spool:
        spool.push(x)
        np.testing.assert_array_equal(spool.pop(), x)


@given(st.lists(arrays, min_size=1, max_size=4), st.lists(arrays, max_size=3))
def test_another_spool_goes_on_in_the_same_file(tmp_path_factory, rows, lost):
    file = tmp_path_factory.mktemp("spool") / "file"
    with Spool(file=file) as spool:
        for row in rows:
            spool.push(row)
        entries = spool.entries
        for row in lost:
            spool.push(row)
    with Spool(file=file, entries=entries) as spool:
        spool.push(np.arange(3))
        for row in (np.arange(3), *reversed(rows)):
            np.testing.assert_array_equal(spool.pop(), row)


def test_more_pops_than_pushes_are_an_error():
    with Spool() as spool, pytest.raises(IndexError):
        spool.pop()


@given(st.integers(1, 60), st.integers(1, 50), st.integers(1, 500))
def test_batches_cover_all_windows_in_order(count, length, batch_tokens):
    rows = [r for b in batches_of(np.zeros((count, length), np.int32), batch_tokens) for r in range(b.start, b.stop)]
    sizes = [b.stop - b.start for b in batches_of(np.zeros((count, length), np.int32), batch_tokens)]
    assert rows == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * length <= max(batch_tokens, length)
