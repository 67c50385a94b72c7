"""The memory of packed matrices and of caches."""
import gc
import mmap
import re
import weakref
from pathlib import Path

import pytest
import torch

from redlite.kernels.cpu import memory


@pytest.mark.parametrize("count", [0, 1, 4096, 4097, memory.OWN - 1, memory.OWN, memory.OWN + 5])
@pytest.mark.parametrize("make", [memory.zeros, memory.weights])
def test_memory_is_zeroed_and_begins_at_a_page(make, count):
    found = make(count)
    assert found.dtype == torch.uint8 and len(found) == count
    assert count == 0 or found.data_ptr() % mmap.PAGESIZE == 0
    assert not found.any()


def test_matrices_do_not_overlap():
    sizes = [1, 5000, memory.OWN - 1, 70_000, *[memory.OWN // 2] * 9, memory.OWN, 3]
    found = [memory.weights(n) for n in sizes]
    for i, matrix in enumerate(found):
        matrix.fill_(i + 1)
    assert all((matrix == i + 1).all() for i, matrix in enumerate(found))


def test_large_matrix_begins_at_a_huge_page_and_ends_with_its_owner():
    found = memory.weights(memory.OWN + 1)
    assert found.data_ptr() % memory.HUGE == 0
    address = found.data_ptr()
    assert _flags(address)
    del found
    gc.collect()
    assert not _flags(address)


def test_small_matrix_lasts_when_those_beside_it_are_gone():
    kept, gone = memory.weights(5000), memory.weights(5000)
    kept.fill_(7)
    watched = weakref.ref(gone)
    del gone
    gc.collect()
    assert watched() is None and (kept == 7).all()


def test_weights_ask_for_huge_pages_and_caches_do_not():
    """A cache is written here and there: a huge page for each place would take memory that is not used."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no huge pages")
    assert "hg" in _flags(memory.weights(memory.OWN).data_ptr())
    assert "hg" in _flags(memory.weights(10).data_ptr())
    assert "hg" not in _flags(memory.zeros(memory.OWN).data_ptr())


def test_no_room_is_a_memory_error():
    with pytest.raises(MemoryError, match="no memory for"):
        memory.weights(1 << 60)
    with pytest.raises(MemoryError, match="no memory for"):
        memory.zeros(1 << 60)


def _flags(address: int) -> set[str]:
    """The flags of the mapping that holds an address, {} if there is none."""
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(x, 16) for x in part.split(maxsplit=1)[0].split("-"))
        if first <= address < last:
            return set(re.search(r"VmFlags: (.*)", part)[1].split())
    return set()
