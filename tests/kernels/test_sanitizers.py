"""The kernel tests in another process, the C code under AddressSanitizer and UndefinedBehaviorSanitizer."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-g", "-O1", "-std=c11", "-ffp-contract=fast", "-Wno-psabi", "-pthread", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined", "-shared", "-fPIC"]


@pytest.mark.slow
def test_the_kernel_tests_run_clean(tmp_path):
    try:
        runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True,
                                 text=True).stdout.strip()
    except OSError:
        pytest.skip("there is no gcc")
    library = tmp_path / "_c.so"
    sources = [str(source) for source in sorted((ROOT / "kernels" / "c").glob("*.c"))]
    built = subprocess.run(["gcc", *FLAGS, *sources, "-o", str(library), "-lm"], capture_output=True,
                           text=True)
    if built.returncode or not os.path.isabs(runtime):
        pytest.skip(f"gcc has no sanitizers here: {built.stderr[-200:]}")
    program = ("import ctypes, sys\nfrom redlite.kernels.cpu import library\n"
               "library.find = lambda built=library.declare(ctypes.CDLL(sys.argv[1])): (built, '')\n"
               "import pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[2:]]))")
    names = ("kernels/test_linear", "kernels/test_block", "kernels/test_decode", "kernels/test_sequences",
             "inference/test_forward", "kernels/test_dequantise", "kernels/test_token_nll")
    chosen = [f"{ROOT}/tests/{name}.py" for name in names]
    settings = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program, str(library), *chosen, "-k",
                           "not triton and not reference and not memory"], capture_output=True, text=True,
                          cwd=tmp_path, timeout=300, env={**os.environ, **settings})
    assert done.returncode == 0 and " passed" in done.stdout, (done.stdout + done.stderr)[-3000:]
