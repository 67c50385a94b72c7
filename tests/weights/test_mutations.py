"""A small run of mutations.py; the whole one is a program."""
from pathlib import Path

import mutations
import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                    reason="peak memory is read from Linux's /proc")
def test_damaged_files_are_refused_or_loaded():
    counts, wrong, most = mutations.run(200, seed=1)
    assert not wrong and sum(sum(c.values())
                             for c in counts.values()) == 200 and all(c["refused"] for c in counts.values())
    assert sum(c["loaded"] for c in counts.values()) > 5 and most > 0  # the harness can tell
