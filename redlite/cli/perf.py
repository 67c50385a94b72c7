"""python -m redlite.cli.perf: times redlite and, where they are installed beside it, its peers, in turns in one process.

Ratios stand beside the machine's ceilings, measured in the same run; the last line is the result as JSON.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from redlite.cli.options import Parser, whole
from redlite.cli.program import DONE, guarded
from redlite.errors import Error

CPU_PIECES = ("ceilings", "matmul", "token-nll", "attention", "decode")


def describe() -> Parser:
    parser = Parser(prog="python -m redlite.cli.perf", description=__doc__)
    parser.add_argument("piece", choices=("cpu", "gpu", *CPU_PIECES, "shared-prefix", "perplexity", "client", "first-token", "growth", "redeval"), help="cpu: all of its pieces; gpu: the kernels' tests on the GPU, then times at a 7B model's shapes, beside the peers that are installed; redeval: beside the peers")
    parser.add_argument("--model", metavar="PATH", help="for decode, shared-prefix, perplexity, first-token, growth and redeval: a model")
    parser.add_argument("--text", metavar="FILE", help="for perplexity: plain text")
    parser.add_argument("--model-dir", metavar="DIR", help="for redeval: the same model as a Hugging Face directory")
    parser.add_argument("--peer-python", metavar="PYTHON", help="for redeval and gpu: a Python that has transformers and llama-cpp-python")
    parser.add_argument("--threads", type=whole(1), default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--tokens", type=whole(2), default=64, help="that decode generates (default: %(default)s)")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="for first-token and growth: the weights' format")
    parser.add_argument("--questions", type=whole(1), nargs="+", default=[50, 2000], metavar="N", help="for growth: how many, a run each (default: 50 2000)")
    parser.add_argument("--save", metavar="FILE", help="write the figures, with the machine in words, as JSON")
    return parser


def in_turns(rounds: int, sides: dict[str, Callable[[], object]], wait: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Median seconds of each side, over `rounds` turns after one that warms up. wait: returns when the device is done."""
    seconds = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, body in sides.items():
            wait()
            start = time.perf_counter()
            body()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def ceilings(rounds: int, device: str = "cpu") -> dict:
    """Bytes/s of a large copy (read and written bytes) and float32 (GPU: bfloat16) operations/s of a large product."""
    import torch
    size, dtype, wait = (2048, torch.float32, lambda: None) if device == "cpu" else (8192, torch.bfloat16, torch.cuda.synchronize)
    source = torch.ones(64 << 20, device=device)
    target, a = torch.empty_like(source), torch.ones(size, size, dtype=dtype, device=device)
    took = in_turns(rounds, {"copy": lambda: target.copy_(source), "product": lambda: a @ a}, wait)
    found = {"copy_bytes_per_s": 2 * source.nbytes / took["copy"], "matrix_flops_per_s": 2 * size ** 3 / took["product"]}
    print(f"ceilings: copy {found['copy_bytes_per_s'] / 1e9:.1f} GB/s, {str(dtype)[6:]} product {found['matrix_flops_per_s'] / 1e9:.0f} GFLOP/s")
    return found


def attention(rounds: int, device: str = "cpu") -> dict:
    """Causal attention of one sequence, forward and backward, against torch's scaled_dot_product_attention."""
    import torch

    from redlite import kernels
    (T, H, K), dtype, wait = ((1024, 9, 64), torch.float32, lambda: None) if device == "cpu" else ((4096, 32, 128), torch.bfloat16, torch.cuda.synchronize)
    q, k, v, d = (torch.randn(T, H, K, dtype=dtype, device=device) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    offsets = torch.tensor([0, T], dtype=torch.int32, device=device)

    def ours():
        return kernels.attention(q, k, v, offsets)[0]

    def torchs():
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True)[0].transpose(0, 1)

    forward = in_turns(rounds, {"redlite": ours, "torch": torchs}, wait)
    results = ours(), torchs()
    back = in_turns(rounds, {name: lambda out=out: torch.autograd.grad(out, (q, k, v), d, retain_graph=True)
                             for name, out in zip(("redlite", "torch"), results)}, wait)
    used = kernels.implementation("attention", device)
    print(f"attention ({used}), {T} tokens x {H} x {K} {str(dtype)[6:]}, speed over torch's: "
          f"forward {forward['torch'] / forward['redlite']:.2f}, backward {back['torch'] / back['redlite']:.2f}")
    return {"implementation": used, "forward_seconds": forward, "backward_seconds": back}


def decode(path: str | None, tokens: int, rounds: int, device: str = "cpu") -> dict:
    """Tokens/s of greedy generation at batch 1 and 32 behind a prompt of 8 tokens, by format of the weights, and the bytes/s of weights that batch 1 reads."""
    if not path:
        raise Error("decode needs a model; give --model PATH")
    from redlite.inference.engine import Request
    from redlite.inference.lm import LM
    found = {}
    for quantize in (None, "int8", "int4"):
        lm = LM.load(path, "float32" if device == "cpu" else "bfloat16", device, quantize)
        prompt = lm.tokenizer.encode("The history of the city begins with a river.")[:8]
        took = in_turns(rounds, {(n, new): lambda n=n, new=new: list(lm.engine.run([Request(prompt, new) for _ in range(n)])) for n in (1, 32) for new in (1, tokens + 1)})
        speed = {n: n * tokens / (took[n, tokens + 1] - took[n, 1]) for n in (1, 32)}
        size = sum(_bytes(m.weight) for m in lm.model.modules() if hasattr(m, "weight"))
        found[quantize or lm.dtype] = {"tokens_per_s": {str(n): s for n, s in speed.items()}, "weight_bytes_per_s": size * speed[1]}
        print(f"decode, {quantize or lm.dtype}: {speed[1]:.1f} tokens/s at batch 1 ({size * speed[1] / 1e9:.1f} GB/s of weights), {speed[32]:.1f} at batch 32")
    return found


def shared_prefix(path: str | None, tokens: int, rounds: int, device: str = "cpu") -> dict:
    """Seconds of 32 requests with P common and 16 own prompt tokens: each prefix computed and attended to apart, over once for all. Its figures set engine.SHARED_AT_LEAST."""
    if not path:
        raise Error("shared-prefix needs a model; give --model PATH")
    from redlite.inference import engine
    from redlite.inference.lm import LM
    lm, usual, found = LM.load(path, "float32" if device == "cpu" else "bfloat16", device), engine.SHARED_AT_LEAST, {}
    words = lm.tokenizer.encode("The history of the city begins with a river. " * 100)

    def run(common: int, least: int):
        engine.SHARED_AT_LEAST = least
        try:
            list(lm.engine.run([engine.Request([*words[:common], *words[i + 1:i + 17]], tokens) for i in range(32)]))
        finally:
            engine.SHARED_AT_LEAST = usual
    for common in (4, 8, 16, 64, 362):
        took = in_turns(rounds, {"shared": lambda: run(common, 1), "apart": lambda: run(common, 1 << 30)})
        found[str(common)] = took["apart"] / took["shared"]
        print(f"32 requests, {common} common prompt tokens, {tokens} new: apart takes {found[str(common)]:.2f} × the time of shared", flush=True)
    return found


def perplexity(path: str | None, text: str | None, window: int = 512) -> dict:
    """exp of the mean NLL of a text by format of the weights: windows of 512 tokens, each token but a window's first given those of its window before it."""
    if not (path and text):
        raise Error("perplexity needs a model and a text; give --model PATH and --text FILE")
    import math

    from redlite.inference.lm import LM
    try:
        words = Path(text).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"--text {text}: cannot be read as UTF-8 text ({error})") from None
    found = {}
    for quantize in (None, "int8", "int4"):
        lm = LM.load(path, quantize=quantize)
        ids = lm.tokenizer.encode(words)
        windows = [ids[i:i + window] for i in range(0, len(ids) - 1, window)]
        scores = [lm.score([(w[:1], w[1:])])[0] for w in windows if len(w) > 1]
        name, tokens = quantize or "float32", sum(len(s.per_token) for s in scores)
        found[name] = math.exp(-sum(s.logprob for s in scores) / tokens)
        print(f"perplexity, {name}: {found[name]:.4f} over {tokens} tokens ({100 * (found[name] / found['float32'] - 1):+.2f}%)", flush=True)
    return found | {"tokens": tokens}


def _bytes(weight) -> int:
    return weight.buffer.nbytes if hasattr(weight, "buffer") else weight.nbytes


def matmul(rounds: int) -> dict:
    """Bytes/s that the one-row products of packed weights read, at a 7B model's shapes, beside what this machine reads at all."""
    import torch

    from redlite.kernels import PackedMatrix
    words = torch.ones(64 << 20, dtype=torch.int32)
    read, found = in_turns(rounds, {"read": lambda: words.sum(dtype=torch.int32)})["read"], {}
    found["read_bytes_per_s"] = words.nbytes / read
    for columns, inputs in ((11008, 4096), (32000, 4096)):
        weight, x = torch.randn(columns, inputs), torch.randn(1, inputs)
        packed = {f: PackedMatrix.of(weight, f) for f in ("float32", "int8", "int4")}
        took = in_turns(rounds, {f: lambda m=m: m.product(x) for f, m in packed.items()})
        for f, m in packed.items():
            found[f"{inputs}x{columns} {f}"] = m.buffer.nbytes / took[f]
            print(f"one row × {inputs} × {columns}, {f}: {m.buffer.nbytes / took[f] / 1e9:.1f} GB/s, {m.buffer.nbytes / took[f] / found['read_bytes_per_s']:.2f} of a plain read's {found['read_bytes_per_s'] / 1e9:.1f}")
    return found


def first_token(path: str | None, quantize: str | None, rounds: int) -> dict:
    """Seconds from the start of `redeval` to the first generated token in responses.jsonl, by prompt: one question, one token, in a fresh process each time."""
    if not path:
        raise Error("first-token needs a model; give --model PATH")
    found = {}
    for prompt in ("standard", "cou"):
        found[prompt] = statistics.median([_redeval_process(path, quantize, 1, 1, prompt, True)[0] for _ in range(rounds + 1)][1:])
        print(f"first token, {prompt} prompt: {found[prompt]:.2f} s", flush=True)
    return found


def growth(path: str | None, quantize: str | None, counts: list[int], tokens: int) -> dict:
    """Seconds a question and peak memory of whole RED-EVAL runs (CoU, --tokens new tokens) of different sizes, a fresh process each."""
    if not path:
        raise Error("growth needs a model; give --model PATH")
    found = {}
    for n in counts:
        seconds, peak = _redeval_process(path, quantize, n, tokens)
        found[str(n)] = {"seconds": seconds, "seconds_per_question": seconds / n, "peak_bytes": peak}
        print(f"{n} questions, {tokens} new tokens: {seconds:.1f} s with loading, {seconds / n:.3f} s a question, at most {peak / 1e6:.0f} MB", flush=True)
    return found


def _redeval_process(path: str, quantize: str | None, questions: int, tokens: int, prompt: str = "cou", until_first: bool = False) -> tuple[float, int]:
    """(seconds, peak bytes) of `redeval run` on invented mild questions, to its end or to its first answer."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        listed, run = Path(folder) / "questions.json", Path(folder) / "run"
        listed.write_text(json.dumps([f"What should a careful person know about hobby number {i}?" for i in range(questions)]))
        command = [sys.executable, "-m", "redlite.cli.redeval", "run", "--model", path, "--questions", str(listed), "--prompt", prompt, "--judge", "none",
                   "--max-new-tokens", str(tokens), "--output-dir", str(run), "--quiet", *(("--quantize", quantize) if quantize else ())]
        start, answers = time.perf_counter(), run / "responses.jsonl"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while until_first and process.poll() is None and not (answers.exists() and answers.stat().st_size):
            time.sleep(0.005)
        first = time.perf_counter() - start
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Error(f"{' '.join(command)} ended with exit code {process.returncode}")
        return (first if until_first else time.perf_counter() - start), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def redeval(path: str | None, directory: str | None, python: str | None) -> dict:
    """RED-EVAL's CoU prompt beside transformers and llama.cpp: tests/beside/compare_speed.py, in the Python that has them."""
    if not (path and directory and python):
        raise Error("redeval needs --model FILE.gguf, --model-dir DIR (the same as a Hugging Face directory) and --peer-python PYTHON (one that has transformers and "
                    "llama-cpp-python)")
    return peers("compare_speed.py", python, path, directory)


def peers(name: str, python: str, *arguments: str) -> dict:
    """Run a comparison of tests/beside in the Python that has the peers; what its last line says."""
    script = Path(__file__).parents[2] / "tests" / "beside" / name
    if not script.exists():
        raise Error(f"{script} is not there; the comparisons need a source checkout")
    done = subprocess.run([python, str(script), *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(script.parents[2])})
    print(done.stdout.rpartition("\n{")[0])
    if done.returncode:
        raise Error(f"{script} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def gpu_tests() -> None:
    """The kernels' tests on the GPU. Raises Error where they fail."""
    root = Path(__file__).parents[2]
    tests = [str(root / "tests" / name) for name in ("kernels/test_token_nll.py", "kernels/test_attention.py", "kernels/test_decode_triton.py", "kernels/test_matmul_triton.py",
                                                   "inference/test_graph.py")]
    missing = [t for t in tests if not Path(t).exists()]
    if missing:
        raise Error(f"{missing[0]} is not there; run from a source checkout, which has the kernels' tests")
    code = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env={**os.environ, "REDLITE_KERNELS": "triton"}).returncode
    if code:
        raise Error(f"the kernels' tests fail on this GPU (pytest exit {code}); no times are taken of wrong kernels")


def body(arguments: list[str]) -> int:
    args = describe().parse_args(arguments)
    if args.model and not Path(args.model).exists() and args.model != "organism":
        raise Error(f"--model {args.model}: there is no such file or directory")
    import torch
    torch.set_num_threads(args.threads)
    found = {"machine": f"{platform.machine()}, {os.cpu_count()} processors, {args.threads} threads, torch {torch.__version__}"}
    if args.piece == "gpu":
        if not torch.cuda.is_available():
            raise Error("there is no CUDA GPU here; run this on a machine that has one, or `cpu`")
        gpu_tests()
        found["machine"] += f", {torch.cuda.get_device_name()}"
        found |= {"ceilings": ceilings(args.rounds, "cuda"), "attention": attention(args.rounds, "cuda")}
        if args.model:
            found["decode"] = decode(args.model, args.tokens, args.rounds, "cuda")
        from redlite.perf import gpu
        found["7b"] = gpu.run(args.rounds, found["ceilings"])
        torch.cuda.empty_cache()
        found["peers"] = peers("compare_gpu.py", args.peer_python or sys.executable)
    pieces = {"cpu": CPU_PIECES, "gpu": ()}.get(args.piece, ("ceilings", *(() if args.piece == "ceilings" else (args.piece,))))
    for piece in pieces:
        if piece == "token-nll":
            from redlite.perf import token_nll
            found[piece] = token_nll.run(args.rounds, args.threads)
        elif piece == "decode":
            found[piece] = decode(args.model, args.tokens, args.rounds)
        elif piece == "client":
            from redlite.perf import client
            found[piece] = client.run()
        elif piece == "shared-prefix":
            found[piece] = shared_prefix(args.model, args.tokens, args.rounds)
        elif piece == "perplexity":
            found[piece] = perplexity(args.model, args.text)
        elif piece == "first-token":
            found[piece] = first_token(args.model, args.quantize, args.rounds)
        elif piece == "growth":
            found[piece] = growth(args.model, args.quantize, args.questions, args.tokens)
        elif piece == "redeval":
            found[piece] = redeval(args.model, args.model_dir, args.peer_python)
        else:
            found[piece] = {"ceilings": ceilings, "attention": attention, "matmul": matmul}[piece](args.rounds)
    if args.save:
        Path(args.save).parent.mkdir(parents=True, exist_ok=True)
        Path(args.save).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return DONE


if __name__ == "__main__":
    sys.exit(guarded("perf", body))
