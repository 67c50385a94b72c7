"""A slice of tests/beside/fuzz_configs.py: mutated configurations load or are refused in one short line."""
import fuzz_configs


def test_mutated_configurations():
    found = fuzz_configs.run(60, 11)
    assert found["loads"] > 5 and found["refused"] > 20
