"""A small run of mutations.py; the whole one is a program."""
import mutations


def test_damaged_files_are_refused_or_loaded():
    counts, wrong = mutations.run(200, seed=1)
    assert not wrong and sum(sum(c.values()) for c in counts.values()) == 200 and all(c["refused"] for c in counts.values())
