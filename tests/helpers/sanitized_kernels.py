"""The kernel tests on C code under AddressSanitizer and UndefinedBehaviorSanitizer.

python sanitized_kernels.py FOLDER builds the library there and becomes the process that tests it. It exits
with SKIPPED, and says why, where gcc or its sanitizers are missing.
"""
import os
import subprocess
import sys
from pathlib import Path

SKIPPED = 77
ROOT = Path(__file__).parents[2]
FLAGS = [
    "-g", "-O1", "-std=c11", "-ffp-contract=fast", "-Wno-psabi", "-pthread", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined", "-shared", "-fPIC"]
TESTS = ("kernels/test_linear", "kernels/test_block", "kernels/test_decode", "kernels/test_sequences",
         "inference/test_forward", "kernels/test_dequantise", "kernels/test_token_nll",
         "kernels/test_frozen", "kernels/test_training")
PROGRAM = """import ctypes, sys
from redlite.kernels.cpu import library
library.find = lambda built=library.declare(ctypes.CDLL(sys.argv[1])): (built, '')
import pytest
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[2:]]))"""


def main(folder: Path) -> None:
    """Build, then test in this process's place."""
    try:
        asked = ["gcc", "-print-file-name=libasan.so"]
        runtime = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        skip("there is no gcc")
    library = folder / "_c.so"
    sources = [str(source) for source in sorted((ROOT / "kernels" / "c").glob("*.c"))]
    build = ["gcc", *FLAGS, *sources, "-o", str(library), "-lm"]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode or not os.path.isabs(runtime):
        skip(f"gcc has no sanitizers here: {built.stderr[-200:]}")
    settings = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0", "OMP_NUM_THREADS": "1"}
    os.chdir(folder)
    os.execve(sys.executable, [
        sys.executable, "-c", PROGRAM, str(library), *(f"{ROOT}/tests/{name}.py" for name in TESTS),
        "-k", "not triton and not reference and not memory"], {**os.environ, **settings})


def skip(why: str) -> None:
    """Leave with SKIPPED."""
    print(why)
    sys.exit(SKIPPED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
