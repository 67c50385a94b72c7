"""The kernel tests in another process, the C code under AddressSanitizer and UndefinedBehaviorSanitizer."""
import atexit
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import sanitized_kernels

started: list[tuple[subprocess.Popen, Path]] = []


def start() -> None:
    """Begin, as soon as the test is chosen (tests/conftest.py): it takes minutes, beside the other tests."""
    folder = tempfile.TemporaryDirectory(prefix="redlite-sanitizers-")
    log = Path(folder.name) / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, sanitized_kernels.__file__, folder.name], stdout=file,
                                   stderr=subprocess.STDOUT)
    atexit.register(folder.cleanup)
    atexit.register(process.kill)       # before the folder is removed: the last that is registered runs first
    started.append((process, log))


@pytest.mark.slow
@pytest.mark.ahead
def test_the_kernel_tests_run_clean():
    process, log = started.pop()
    code, said = process.wait(timeout=900), log.read_text()
    if code == sanitized_kernels.SKIPPED:
        pytest.skip(said)
    assert code == 0 and " passed" in said, said[-3000:]
