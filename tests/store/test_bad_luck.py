"""Full and failing disks, no memory, texts that would steer a terminal: one line, exit 1, nothing lost."""
import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
import unicodedata

import pytest

from redlite.cli.program import guarded
from redlite.cli.progress import Progress
from redlite.errors import Incomplete
from redlite.store.files import read_json, sha256_file, write_atomic, write_json
from redlite.store.records import each_line
from redlite.store.run_directory import Run
from redlite.store.text import Plain, columns, plain, points

FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG]


def failing(number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))
    return fail


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_journal_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch, number, call):
    said = pytest.raises(Incomplete, match=r"a.jsonl: cannot be written \(.*run the same command again")
    with said, Run(tmp_path, {}) as run:
        run.append("a.jsonl", {"n": 1})
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing(number))
            run._synced["a.jsonl"] = 0
            run.append("a.jsonl", {"n": 2})
    with Run(tmp_path, {}) as run:
        assert run.read("a.jsonl")[0] == {"n": 1}
        run.append("a.jsonl", {"n": 3})
    assert [r["n"] for r in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())][-1] == 3


def test_a_line_that_is_half_written_is_taken_back(tmp_path, monkeypatch):
    """The disk takes some bytes of a line, then none."""
    with Run(tmp_path, {}) as run:
        run.append("a.jsonl", {"n": 1})
        real, took = os.write, []

        def write(descriptor, data):
            if took:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            took.append(1)
            return real(descriptor, data[:4])
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(Incomplete):
            run.append("a.jsonl", {"n": 2})
    assert (tmp_path / "a.jsonl").read_text() == '{"n": 1}\n'


def test_closing_does_not_hide_what_broke_off_the_work(tmp_path, monkeypatch):
    with pytest.raises(KeyError), Run(tmp_path, {}) as run:
        run.append("a.jsonl", {"n": 1})
        monkeypatch.setattr(os, "fsync", failing(errno.EIO))
        raise KeyError("the work")


@pytest.mark.parametrize("number", FAULTS)
def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, number):
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(Incomplete, match="a.json: cannot be written"):
        write_json(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1\n" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you "
                 "tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(errno.EIO, "Input/output error"), OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x"),
], ids=str)
def test_no_memory_and_no_disk_are_one_line(error, capsys, monkeypatch):
    monkeypatch.setattr("redlite.cli.program._discard_output", lambda: None)

    def body(arguments):
        raise error
    assert guarded("redeval", body, []) == 1
    said = capsys.readouterr().err
    assert said.startswith("redeval: ") and said.count("\n") == 1 and "what is finished is kept" in said


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), SystemError("error return")])
def test_other_faults_are_bugs(error):
    def body(arguments):
        raise error
    with pytest.raises(type(error)):
        guarded("redeval", body, [])


def test_python_that_breaks_under_a_limit_of_memory_is_one_line():
    """Its C code raises SystemError now and then where an allocation fails."""
    code = ("import resource, sys; from redlite.cli.program import guarded\n"
            "def body(arguments): raise SystemError('error return without exception set')\n"
            "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); sys.exit(guarded('redeval', body))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("redeval: there is not enough memory")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file that reads as a failing disk")
@pytest.mark.parametrize("read", [read_json, sha256_file, lambda path: list(each_line(path))])
def test_a_disk_that_fails_while_it_is_read_is_no_mistake_of_the_command(read):
    with pytest.raises(Incomplete, match="/proc/self/mem: cannot be read .*see to the disk"):
        read("/proc/self/mem")


NASTY = "a\x1b]0;title\x07\x1b[31m\x9b2J\r\x7f\u202eb\u2066c\u200f\u2028d\x85"


def test_nothing_steers_the_terminal(capsys):
    """By Unicode's own categories: no control but line ends and tabs, no bidi control (they are all Cf)."""
    def body(arguments):
        print(f"topic {NASTY}\tx")
        print(json.dumps({"topic": NASTY}, ensure_ascii=False))
        Progress(stream=None)(NASTY, 1, 1)
        return 0
    assert guarded("redeval", body, []) == 0
    out, error = capsys.readouterr()
    for text in (out, error):
        assert {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} <= {"\n", "\t"}
    assert json.loads(out.splitlines()[-1]) == {"topic": NASTY}     # as JSON it is the same text
    assert plain("日本 é 🙂 \u0627\u0644\n\t") == "日本 é 🙂 \u0627\u0644\n\t"


def test_a_live_line_still_overwrites_itself():
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    terminal = Terminal()
    Progress(stream=Plain(terminal))("judging \x1b[2J", 1, 1)
    assert terminal.getvalue() == "\rjudging \\u001b[2J: 1/1\x1b[K\n"


def test_a_table_keeps_its_lines_whatever_a_file_calls_its_topics():
    rows = [["topic", "n"], ["a\nb\tc\u2028d", "1"], ["\u202ex", "2"], ["s" * 99 + "t" * 99, "3"]]
    assert columns(rows) == ["topic".ljust(120) + "  n", "a b c d".ljust(120) + "  1",
                             "\\u202ex".ljust(120) + "  2", "s" * 60 + "…" + "t" * 59 + "  3"]


def test_points_have_no_negative_zero():
    assert [points(x) for x in (-1e-9, 0.0, -0.0006, 0.25)] == ["+0.0", "+0.0", "-0.1", "+25.0"]


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path):
    """`--output /dev/stdout` or a named pipe: what is there is written to, and stays what it is."""
    pipe, full = tmp_path / "pipe", tmp_path / "full"
    os.mkfifo(pipe)
    full.symlink_to("/dev/full")
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, "said")
    reader.join(10)
    assert read == [b"said"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(Incomplete, match="No space left"):
        write_atomic(full, "said")
    assert full.is_symlink() and stat.S_ISCHR(full.stat().st_mode)
    code = "from redlite.store.files import write_atomic; write_atomic('/dev/fd/1', 'said')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("said", "")
