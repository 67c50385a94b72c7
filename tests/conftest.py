"""Which tests are slow, and one thread for all of them.

Their models are too small for more threads, and threads that spin would fight for the cores. That holds for
the programs that they start as well.
"""
import gc
import os
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
for name in ("kernels", "data"):    # links in a checkout, which a source distribution cannot hold
    if not (ROOT / name).exists():
        (ROOT / name).symlink_to(Path("redlite") / name)

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)     # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what runs in Triton's interpreter, and the cases of a test after its first few.

    @pytest.mark.first(N)  the first N cases are quick enough, the others are for the whole suite
    """
    seen: Counter[str] = Counter()
    for item in items:
        whole_name = item.nodeid.partition("[")[0]
        seen[whole_name] += 1
        first = item.get_closest_marker("first")
        if "triton" in item.name.partition("[")[2] or first and seen[whole_name] > first.args[0]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what has been imported and collected out of every later search for garbage.

    What is marked `ahead` starts now, as a process of its own: one core serves the tests, another is idle.
    """
    gc.collect()
    gc.freeze()
    for item in session.items:
        if item.get_closest_marker("ahead") and not session.config.option.collectonly:
            item.module.start()
