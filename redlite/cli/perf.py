"""python -m redlite.cli.perf: times redlite and, where they are installed beside it, its peers, in turns.

Ratios stand beside the machine's ceilings, measured in the same run; the last line is the result as JSON.
"""
import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redlite.cli.options import Parser, whole
from redlite.cli.program import DONE, guarded
from redlite.errors import Error

CPU_PIECES = ("ceilings", "matmul", "token-nll", "attention", "decode")
OTHERS = ("shared-prefix", "look-up", "perplexity", "client", "first-token", "growth", "redeval")
# What a piece cannot do without.
NEEDED = {"decode": ("model",), "shared-prefix": ("model",), "look-up": ("model",),
          "perplexity": ("model", "text"), "first-token": ("model",), "growth": ("model",),
          "redeval": ("model", "model_dir", "peer_python")}


def describe() -> Parser:
    """The options."""
    parser = Parser(prog="python -m redlite.cli.perf", description=__doc__)
    parser.add_argument("piece", choices=("cpu", "gpu", *CPU_PIECES, *OTHERS), help=(
        "cpu: all of its pieces; gpu: the kernels' tests on the GPU, then times at a 7B model's shapes, "
        "beside the peers that are installed; redeval: beside the peers"))
    parser.add_argument("--model", metavar="PATH", help=(
        "for decode, shared-prefix, look-up, perplexity, first-token, growth and redeval: a model"))
    parser.add_argument("--text", metavar="FILE", help="for perplexity: plain text")
    parser.add_argument("--model-dir", metavar="DIR",
                        help="for redeval: the same model as a Hugging Face directory")
    parser.add_argument("--peer-python", metavar="PYTHON",
                        help="for redeval and gpu: a Python that has the peers")
    parser.add_argument("--threads", type=whole(1), default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=5,
                        help="turns of each side (default: %(default)s)")
    parser.add_argument("--tokens", type=whole(2), default=64,
                        help="that decode and look-up generate (default: %(default)s)")
    parser.add_argument("--quantize", choices=("int8", "int4"),
                        help="for first-token and growth: the weights' format")
    parser.add_argument("--questions", type=whole(1), nargs="+", default=[50, 2000], metavar="N",
                        help="for growth: how many, a run each (default: 50 2000)")
    parser.add_argument("--save", metavar="FILE",
                        help="write the figures, with the machine in words, as JSON")
    return parser


def pieces(args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each piece on a CPU runs."""
    from redlite.perf import client, cpu, look_up, processes, token_nll
    return {
        "ceilings": lambda: cpu.ceilings(args.rounds),
        "matmul": lambda: cpu.matmul(args.rounds),
        "token-nll": lambda: token_nll.run(args.rounds, args.threads),
        "attention": lambda: cpu.attention(args.rounds),
        "decode": lambda: cpu.decode(args.model, args.tokens, args.rounds),
        "shared-prefix": lambda: cpu.shared_prefix(args.model, args.tokens, args.rounds),
        "perplexity": lambda: cpu.perplexity(args.model, args.text),
        "look-up": lambda: look_up.run(args.model, args.tokens, args.rounds),
        "client": client.run,
        "first-token": lambda: processes.first_token(args.model, args.quantize, args.rounds),
        "growth": lambda: processes.growth(args.model, args.quantize, args.questions, args.tokens),
        "redeval": lambda: processes.cpu_peers(args.peer_python, args.model, args.model_dir, args.rounds)}


def _gpu(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a GPU."""
    import torch

    from redlite.perf import cpu, gpu, processes
    if not torch.cuda.is_available():
        raise Error("there is no CUDA GPU here; run this on a machine that has one, or `cpu`")
    processes.gpu_tests()
    found = {"ceilings": cpu.ceilings(args.rounds, "cuda"), "attention": cpu.attention(args.rounds, "cuda")}
    if args.model:
        found["decode"] = cpu.decode(args.model, args.tokens, args.rounds, "cuda")
    found["7b"] = gpu.run(args.rounds, found["ceilings"])
    torch.cuda.empty_cache()
    found["peers"] = processes.peers("compare_gpu.py", args.peer_python or sys.executable)
    return found


def body(arguments: list[str]) -> int:
    """The program."""
    args = describe().parse_args(arguments)
    if args.model and not Path(args.model).exists() and args.model != "organism":
        raise Error(f"--model {args.model}: there is no such file or directory")
    wanted = CPU_PIECES if args.piece == "cpu" else dict.fromkeys(("ceilings", args.piece))
    for piece in wanted:
        for name in NEEDED.get(piece, ()):
            if not getattr(args, name):
                raise Error(f"{piece} needs --{name.replace('_', '-')}; see --help")
    import torch
    torch.set_num_threads(args.threads)
    machine = (f"{platform.machine()}, {os.cpu_count()} processors, {args.threads} threads, "
               f"torch {torch.__version__}")
    from redlite.perf import cpu
    loops = cpu.loops()
    if args.piece == "gpu":
        found = _gpu(args)
        machine += f", {torch.cuda.get_device_name()}"
    else:
        run = pieces(args)
        found = {piece: run[piece]() for piece in wanted}
    found = {"machine": machine, "loops": loops, **found}
    if args.save:
        Path(args.save).parent.mkdir(parents=True, exist_ok=True)
        Path(args.save).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return DONE


if __name__ == "__main__":
    sys.exit(guarded("perf", body))
