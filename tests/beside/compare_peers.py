"""Times redlite beside other engines on a CPU: each in its best mode, in a process of its own, in turns.

    python tests/beside/compare_peers.py MODEL.gguf HF_DIR --made DIR [--python vllm=PYTHON …] [--turns 3]
        [--sides "redlite*,openvino*"] [--one-at-a-time] [--trial] [--json FILE]

HF_DIR is the same model as a Hugging Face directory. The formats that peers want are made of both, once, in
DIR. Idle processes are stopped by a signal, so that none spins. Rows, as medians over the turns:
    cou      seconds a question: mild questions under the CoU prompt, 64 new tokens, 32 in one batch
    single   tokens/s of one sequence behind a prompt of 8 tokens
    prefill  tokens/s of a prompt of 1,000 tokens
Loading is left out. No turn's prompts begin as another's do, so that no prefix cache of an engine carries
over. A side that fails is named with its reason, and the others go on.
"""
import argparse
import fnmatch
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from redlite.inference.parts import parts
from redlite.redteam import questions
from redlite.weights.source import open_source

WORKER = Path(__file__).with_name("peer_worker.py")
LLAMA = {"BF16": 32, "Q8_0": 7, "Q4_0": 2}  # llama.cpp's own numbers of file types
OPENVINO = {"bf16": ("fp16",), "int8": ("int8",), "int4": ("int4", "--group-size", "64", "--ratio", "1.0")}


class Side:
    """An engine with a format of the weights: how its process is started, and asked.

    make  the command that makes its model, where it is not there
    """

    def __init__(self, engine: str, form: str, model: Path, python: str, make: list[str] | None = None):
        self.engine, self.form, self.model, self.python, self.make = engine, form, model, python, make
        self.name, self.process, self.about = f"{engine} {form}", None, {}
        self.failed, self.turns = "", []

    def start(self, log: Path) -> None:
        """Start the process, and wait until it has loaded."""
        if self.make and not self.model.exists():
            done = subprocess.run(self.make, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise RuntimeError(f"its model could not be made: {done.stderr.strip().splitlines()[-1:]}")
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [self.python, str(WORKER), self.engine, str(self.model), self.form], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "2"})
        self.about = self._line(log)
        self.log = log

    def _line(self, log: Path) -> dict:
        line = self.process.stdout.readline()
        if not line:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"ended with {self.process.wait()}: {' '.join(last)[:200]}")
        return json.loads(line)

    def signal(self, what: signal.Signals) -> None:
        """To the process and those that it has started."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, what)

    def seconds(self, prompts: list[list[int]], new: int) -> float:
        """How long these answers take."""
        self.process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self.process.stdin.flush()
        answer = self._line(self.log)
        self.answer = answer["ids"]
        return answer["seconds"]

    def turn(self, work: "Work", number: int) -> dict[str, float]:
        """All rows once."""
        found = {"cou": self.seconds(work.cou(number), work.new) / work.count}
        one = [[work.word(number, 1), *work.text[:7]]]
        short = self.seconds(one, 1)
        one[0][0] = work.word(number, 2)
        found["single"] = work.single / (self.seconds(one, work.single + 1) - short)
        prompt = [work.word(number, 3), *(work.text * 200)[:work.prompt - 1]]
        return found | {"prefill": work.prompt / self.seconds([prompt], 1)}

    def end(self) -> None:
        """End the process and those that it has started."""
        if self.process:
            self.signal(signal.SIGCONT)
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.process.wait()
            self.process = None


class Work:
    """The prompts, as ids. The first token of each says which turn it belongs to.

    trial  a tenth of the work: figures of it say only that a side runs
    """

    def __init__(self, gguf: Path, trial: bool):
        count, self.new, self.single, self.prompt = (4, 8, 16, 200) if trial else (32, 64, 128, 1000)
        found = parts(open_source(gguf), None)
        self.count, self.text = count, found.tokenizer.encode("The history of the city begins with a river. ")
        sample = questions.load_questions(questions.find_questions("sample", None))
        prompt = questions.load_prompt("cou")
        texts = [prompt.fill(f"{sample[i % len(sample)].question} (case {i})") for i in range(count)]
        self.prompts = [found.chat.encode([{"role": "user", "content": t}], add_generation_prompt=True).ids
                        for t in texts]

    @staticmethod
    def word(turn: int, row: int) -> int:
        """A token that begins no other prompt."""
        return 300 + 4 * turn + row

    def cou(self, turn: int) -> list[list[int]]:
        """The CoU prompts of a turn."""
        return [[self.word(turn, 0), *ids] for ids in self.prompts]


def sides(args: argparse.Namespace) -> list[Side]:
    """Every engine with every format."""
    pythons = {"redlite": sys.executable, **dict(p.split("=", 1) for p in args.python)}

    def python(engine: str) -> str:
        return pythons.get(engine, pythons.get("peers", sys.executable))
    found = [Side("redlite", form, args.gguf, python("redlite"))
             for form in ("int8", "int4", "bfloat16", "float32")]
    for form, more in OPENVINO.items():
        out = args.made / f"openvino-{form}"
        found.append(Side("openvino", form, out, python("openvino"), [
            str(Path(python("openvino")).with_name("optimum-cli")), "export", "openvino", "--model", args.hf,
            "--task", "text-generation-with-past", "--weight-format", *more, str(out)]))
    out = args.made / "onnxruntime-int8"
    found.append(Side("onnxruntime", "int8", out, python("onnxruntime"), [
        python("onnxruntime"), "-m", "onnxruntime_genai.models.builder", "-i", args.hf, "-o", str(out),
        "-p", "int8", "-e", "cpu", "-c", str(args.made / "cache")]))
    found.append(Side("llama.cpp", "file", args.gguf, python("llama.cpp")))  # as it is
    for form, kind in LLAMA.items():
        out = args.made / f"model.{form}.gguf"
        code = (f"import llama_cpp as c; s = c.llama_model_quantize_default_params(); s.ftype = {kind}; "
                "s.allow_requantize, s.nthread = True, 2; "
                f"assert not c.llama_model_quantize({str(args.gguf).encode()!r}, {str(out).encode()!r}, s)")
        found.append(Side("llama.cpp", form, out, python("llama.cpp"), [python("llama.cpp"), "-c", code]))
    found += [Side(engine, "bfloat16", Path(args.hf), python(engine)) for engine in ("transformers", "vllm")]
    chosen = args.sides.split(",")
    return [s for s in found if any(fnmatch.fnmatch(s.name, pattern) for pattern in chosen)]


def ready(side: Side, args: argparse.Namespace, work: Work) -> None:
    """Start a side and have it answer a little, so that what it does once is over."""
    side.start(args.made / f"{side.name}.log")
    side.seconds([ids[:100] for ids in work.cou(-1)[:2]], 2)
    side.seconds([work.text[:8]], 2)


def take_turns(all_sides: list[Side], args: argparse.Namespace, work: Work) -> None:
    """Fill every side's `turns`, or say why it `failed`."""
    for turn in range(args.turns):
        for side in (s for s in all_sides if not s.failed):
            try:
                if side.process is None:
                    start = time.monotonic()
                    ready(side, args, work)
                    side.about["loading_seconds"] = round(time.monotonic() - start, 1)
                side.signal(signal.SIGCONT)
                side.turns.append(side.turn(work, turn))
            except (RuntimeError, OSError) as error:
                side.failed = str(error)
                print(f"{side.name}: fails, and is left out: {error}", file=sys.stderr, flush=True)
            if args.one_at_a_time or side.failed:
                side.end()
            else:
                side.signal(signal.SIGSTOP)
            if side.turns and not side.failed:
                print(f"turn {turn + 1} {side.name}: " + ", ".join(
                    f"{row} {value:.4g}" for row, value in side.turns[-1].items()),
                    file=sys.stderr, flush=True)


def processor() -> str:
    """Its name, and the flags that decide which loops run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
    return f"{values.get('model name', platform.machine())}, {os.cpu_count()} processors, " + " ".join(
        sorted(flags & set(values.get("flags", "").split())))


def summary(all_sides: list[Side]) -> dict:
    """Medians of each side's turns, or why it failed."""
    found = {}
    for side in all_sides:
        if side.failed:
            found[side.name] = {"failed": side.failed}
            continue
        rows = {row: statistics.median(t[row] for t in side.turns) for row in ("cou", "single", "prefill")}
        found[side.name] = {**rows, "turns": side.turns, **side.about}
    return found


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("hf")
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PYTHON",
                        help="peers=PYTHON for those that are not named (default: this Python)")
    parser.add_argument("--sides", default="*", help="patterns with commas between")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--trial", action="store_true", help="a tenth of the work, to see which sides run")
    parser.add_argument("--one-at-a-time", action="store_true",
                        help="load each side anew for each turn: for models that do not fit all at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.made.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no stopped process is left behind
    work, all_sides = Work(args.gguf, args.trial), sides(args)
    start = time.monotonic()
    try:
        take_turns(all_sides, args, work)
    finally:
        for side in all_sides:
            side.end()
    found = summary(all_sides)
    print(f"{'':22}{'cou, s':>10}{'single, tokens/s':>18}{'prefill, tokens/s':>19}  version")
    for name, row in found.items():
        if "failed" in row:
            print(f"{name:22}  {row['failed']}")
        else:
            print(f"{name:22}{row['cou']:10.3f}{row['single']:18.1f}{row['prefill']:19.0f}  {row['version']}")
    result = {"what": f"{work.count} questions under CoU, {work.new} new tokens; one sequence of 8 + "
                      f"{work.single} tokens; a prompt of {work.prompt} tokens; medians of {args.turns} "
                      "turns, 2 threads",
              "machine": processor(), "model": args.gguf.name, "seconds": round(time.monotonic() - start),
              "sides": found}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
