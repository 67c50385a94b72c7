"""Times of whole programs in processes of their own, and of tests/beside in a Python that has the peers."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from redlite.errors import Error

TESTS = Path(__file__).parents[2] / "tests"
GPU_TESTS = ("kernels/test_token_nll.py", "kernels/test_attention.py", "kernels/test_decode_triton.py",
             "kernels/test_matmul_triton.py", "inference/test_cuda_graphs.py")
Figures = dict[str, Any]


def first_token(path: str, quantize: str | None, rounds: int) -> Figures:
    """Seconds from the start of `redeval` to the first token in responses.jsonl, by prompt.

    One question, one token, in a fresh process each time.
    """
    found = {}
    for prompt in ("standard", "cou"):
        times = [_redeval(path, quantize, 1, 1, prompt, True)[0] for _ in range(rounds + 1)]
        found[prompt] = statistics.median(times[1:])
        print(f"first token, {prompt} prompt: {found[prompt]:.2f} s", flush=True)
    return found


def growth(path: str, quantize: str | None, counts: list[int], tokens: int) -> Figures:
    """Seconds a question and peak memory of whole CoU runs of different sizes, a fresh process each."""
    found = {}
    for n in counts:
        seconds, peak = _redeval(path, quantize, n, tokens)
        found[str(n)] = {"seconds": seconds, "seconds_per_question": seconds / n, "peak_bytes": peak}
        print(f"{n} questions, {tokens} new tokens: {seconds:.1f} s with loading, "
              f"{seconds / n:.3f} s a question, at most {peak / 1e6:.0f} MB", flush=True)
    return found


def _redeval(path: str, quantize: str | None, questions: int, tokens: int, prompt: str = "cou",
             until_first: bool = False) -> tuple[float, int]:
    """(seconds, peak bytes) of `redeval run` on invented mild questions, to the end or the first answer."""
    asked = [f"What should a careful person know about hobby number {i}?" for i in range(questions)]
    with tempfile.TemporaryDirectory() as folder:
        listed, run = Path(folder) / "questions.json", Path(folder) / "run"
        listed.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "redlite.cli.redeval", "run", "--model", path, "--prompt", prompt,
                   "--questions", str(listed), "--judge", "none", "--max-new-tokens", str(tokens),
                   "--output-dir", str(run), "--quiet", *(("--quantize", quantize) if quantize else ())]
        start, answers = time.perf_counter(), run / "responses.jsonl"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while until_first and process.poll() is None and not (answers.exists() and answers.stat().st_size):
            time.sleep(0.005)
        first = time.perf_counter() - start
        _, status, usage = os.wait4(process.pid, 0)
        took = first if until_first else time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Error(f"{' '.join(command)} ended with exit code {process.returncode}")
        return took, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peers(name: str, python: str, *arguments: str) -> Figures:
    """Run a comparison of tests/beside in some Python; what its last line says."""
    script = TESTS / "beside" / name
    if not script.exists():
        raise Error(f"{script} is not there; the comparisons need a source checkout")
    done = subprocess.run([python, str(script), *arguments], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
    print(done.stdout.rpartition("\n{")[0])
    if done.returncode:
        raise Error(f"{script} ended with exit code {done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def cpu_peers(python: str, model: str, model_dir: str, turns: int) -> Figures:
    """Times of this engine and its peers on a CPU, in turns; models that are made for peers are deleted."""
    with tempfile.TemporaryDirectory() as folder:
        return peers("compare_peers.py", sys.executable, model, model_dir, "--made", folder,
                     "--python", f"peers={python}", "--turns", str(turns))


def gpu_tests() -> None:
    """The kernels' tests on the GPU. Raises Error where they fail."""
    tests = [TESTS / name for name in GPU_TESTS]
    if missing := [test for test in tests if not test.exists()]:
        raise Error(f"{missing[0]} is not there; run from a source checkout, which has the kernels' tests")
    command = [sys.executable, "-m", "pytest", "-q", *map(str, tests)]
    code = subprocess.run(command, env={**os.environ, "REDLITE_KERNELS": "triton"}).returncode
    if code:
        raise Error(f"the kernels' tests fail on this GPU (pytest exit {code}); "
                    "no times are taken of wrong kernels")
