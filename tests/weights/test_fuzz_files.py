"""A slice of the fuzzer of model files; the whole of it is tests/beside/fuzz_files.py."""
import fuzz_files
import pytest


@pytest.mark.slow
def test_mutated_files_load_or_end_in_one_line():
    outcomes, wrong = fuzz_files.run(120, 1)
    assert wrong == [] and outcomes["refused"] > 60 and outcomes["loaded"] > 0
