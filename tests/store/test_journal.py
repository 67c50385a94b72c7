"""Run directories: nothing lost, nothing doubled, nothing torn, whatever happens; and the faults that a user
can mend.
"""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from redlite.errors import Error
from redlite.store import records
from redlite.store.files import (
    Hashing,
    read_json,
    replacing,
    sha256_file,
    sha256_json,
    write_atomic,
    write_json,
)
from redlite.store.records import read_lines, require
from redlite.store.run_directory import Run, difference

MANIFEST = {
    "command": "x", "version": "1", "model": {"weights": "a" * 64, "dtype": "float32"},
    "info": {"torch": "1"}
}


def lines(path):
    return path.read_bytes().split(b"\n")


def test_records_come_back_as_they_went(tmp_path):
    records = [{"text": "a\nb\r\u2028\u0085\x00\"\\ 日本 🙂", "n": 1.5, "deep": [{"a": None}, True]}, {},
               {"text": ""}]
    with Run(tmp_path / "r", MANIFEST) as run:
        for r in records:
            run.append("a.jsonl", r)
        assert run.read("a.jsonl") == records
    with Run(tmp_path / "r", MANIFEST) as run:
        run.append("a.jsonl", {"last": 1})
        assert run.read("a.jsonl") == [*records, {"last": 1}]
        assert run.read("none.jsonl") == []
    assert len(lines(tmp_path / "r" / "a.jsonl")) == 5 and lines(tmp_path / "r" / "a.jsonl")[-1] == b""


def test_a_lone_surrogate_is_kept(tmp_path):
    with Run(tmp_path, MANIFEST) as run:
        run.append("a.jsonl", {"text": "x\ud83dy"})
    assert lines(tmp_path / "a.jsonl")[0] == b'{"text": "x\\ud83dy"}'
    assert read_lines(tmp_path / "a.jsonl")[0] == [{"text": "x\ud83dy"}]


def test_infinity_is_refused_rather_than_written(tmp_path):
    with Run(tmp_path, MANIFEST) as run:
        with pytest.raises(ValueError):
            run.append("a.jsonl", {"x": float("nan")})
        assert run.read("a.jsonl") == []


def test_a_line_torn_at_any_byte_is_dropped_and_replaced(tmp_path):
    whole, last = b'{"a": 1}\n', '{"b": "é", "c": {"d": [1]}}'.encode()
    for cut in range(len(last) + 1):
        path = tmp_path / f"{cut}" / "a.jsonl"
        with Run(path.parent, MANIFEST):
            path.write_bytes(whole + last[:cut])
        with Run(path.parent, MANIFEST) as run:
            complete = [{"b": "é", "c": {"d": [1]}}] if cut == len(last) else []
            assert run.read("a.jsonl") == [{"a": 1}, *complete]
            run.append("a.jsonl", {"n": 2})
        assert [json.loads(line) for line in lines(path)[:-1]] == [{"a": 1}, *complete, {"n": 2}]


def test_appending_without_reading_first_also_drops_the_torn_line(tmp_path):
    with Run(tmp_path, MANIFEST):
        (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"b": ')
    with Run(tmp_path, MANIFEST) as run:
        run.append("a.jsonl", {"c": 3})
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"a": 1}\n{"c": 3}\n'


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"3", b"", b'{"a": \xff}', b"[" * 100000])
def test_a_bad_line_elsewhere_is_named(tmp_path, bad):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + bad + b'\n{"c": 3}\n')
    with pytest.raises(Error, match=r"a\.jsonl, line 2: "):
        read_lines(tmp_path / "a.jsonl")


def test_a_manifest_that_differs_is_refused_by_field(tmp_path):
    with Run(tmp_path, MANIFEST):
        pass
    other = {**MANIFEST, "model": {"weights": "b" * 64, "dtype": "float32"}}
    with pytest.raises(Error, match=r"manifest\.json.*model\.weights is \"aaa.* there and \"bbb.* now"):
        Run(tmp_path, other)
    with pytest.raises(Error, match="seed is nothing there and 3 now") as caught:
        Run(tmp_path, {**MANIFEST, "seed": 3})
    assert caught.value.setting == "seed"
    with pytest.raises(Error, match="version is \"1\" there and nothing now"):
        Run(tmp_path, {k: v for k, v in MANIFEST.items() if k != "version"})
    with Run(tmp_path, {**MANIFEST, "command": "y", "info": {}}) as run:  # these two are for the reader
        assert run.manifest == MANIFEST
    with Run(tmp_path) as run:
        assert run.manifest == MANIFEST


def test_directories_that_are_no_runs(tmp_path):
    with pytest.raises(Error, match="no manifest.json"):
        Run(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "responses.jsonl").write_text("{}\n")
    with pytest.raises(Error, match="responses.jsonl but no manifest.json"):
        Run(tmp_path / "stray", MANIFEST)
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="choose another") as caught:
        Run(tmp_path / "file" / "run", MANIFEST)
    assert caught.value.setting == "output_dir"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    with pytest.raises(Error, match="manifest.json: is not valid JSON"):
        Run(tmp_path / "broken", MANIFEST)


def test_one_process_at_a_time(tmp_path):
    with Run(tmp_path, MANIFEST), pytest.raises(Error, match="another process"):
        Run(tmp_path, MANIFEST)
    Run(tmp_path, MANIFEST).close()  # a refusal takes nothing away, and a close gives the lock back


def test_a_full_disk_leaves_no_half_line(tmp_path):
    script = f"""
import resource, signal
from redlite.store import run_directory as journal
from redlite.errors import Error
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with journal.Run({str(tmp_path)!r}, {{"version": "1"}}) as run:
    try:
        for i in range(100):
            run.append("a.jsonl", {{"i": i, "text": "x" * 90}})
    except Error as error:
        print(i, error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    count, message = out.split(" ", 1)
    assert "a.jsonl: cannot be written" in message and "run the same command again" in message
    assert [json.loads(line)["i"]
            for line in lines(tmp_path / "a.jsonl")[:-1]] == list(range(int(count))) and int(count) > 5


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path):
    """What a process says on its stdout after append() came back must be in the file, however it dies; and no
    line twice.
    """
    script = f"""
import os
from redlite.store import run_directory as journal
with journal.Run({str(tmp_path / "r")!r}, {{"version": "1"}}) as run:
    start = len(run.read("a.jsonl"))
    for i in range(start, 10 ** 6):
        run.append("a.jsonl", {{"i": i, "text": "é" * (i % 3000)}})
        os.write(1, b"%d\\n" % i)
"""
    for delay in (0.0, 0.003, 0.011, 0.02, 0.031):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        promised = [process.stdout.readline()]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        promised += process.stdout.read().split(b"\n")
        process.wait()
        records, _ = read_lines(tmp_path / "r" / "a.jsonl")
        assert [r["i"] for r in records] == list(range(len(records)))
        assert len(records) > max(int(n) for n in promised if n.strip().isdigit())


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n' and read_json(path) == {"a": "é"}
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert read_json(path) == {"a": "é"} and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    with pytest.raises(Error, match="cannot be written"):
        write_atomic(tmp_path / "none" / "x", "")
    (tmp_path / "list.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "list.json") == [1]
    with pytest.raises(Error, match="none.json: cannot be read"):
        read_json(tmp_path / "none.json")


def test_fingerprints(tmp_path):
    (tmp_path / "f").write_bytes(os.urandom(3 << 20))
    assert sha256_file(tmp_path / "f") == hashlib.sha256((tmp_path / "f").read_bytes()).hexdigest()
    assert sha256_json({"b": 1, "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()
    assert Hashing(tmp_path / "f").result() == sha256_file(tmp_path / "f")
    for read in (sha256_file, lambda path: Hashing(path).result()):
        with pytest.raises(Error, match="cannot be read"):
            read(tmp_path / "g")


RECORD = {"text": "x", "n": 3, "share": 0.5, "of": {"a": [1, 2], "b": {"x": 1.5}}, "kind": "red"}
FIELDS = {
    "text": str, "n": int, "share": (int, float), "of.a": [int], "of.b": {str: (int, float)},
    "kind": ("red", "blue"), "more": (str, type(None))
}


def test_a_record_that_is_as_it_must_be_comes_back():
    assert require(RECORD, FIELDS, "f.jsonl, line 1", "mend it") is RECORD


@pytest.mark.parametrize("change, said",
                         [({"text": 3}, "field 'text' is missing or not a text"),
                          ({"n": 1.5}, "'n' is missing or not a whole number"),
                          ({"n": True}, "'n' is missing or not a whole number"),
                          ({"share": float("nan")}, "'share' is missing or not a number"),
                          ({"of": []}, "'of.a' is missing or not a list, each item of it a whole number"),
                          ({"of": {"a": [1, "2"], "b": {}}}, "'of.a' is missing"),
                          ({"of": {"a": [], "b": {"x": None}}}, "'of.b' is missing"),
                          ({"kind": "green"}, "'kind' is missing or not red or blue"),
                          ({"more": 1}, "'more' is missing or not a text or null")])
def test_a_field_that_was_edited_is_named(change, said):
    with pytest.raises(Error, match=f"^f.jsonl, line 1: .*{said}.*; mend it$"):
        require(RECORD | change, FIELDS, "f.jsonl, line 1", "mend it")


def test_what_is_no_object_is_no_record():
    with pytest.raises(Error, match="f.json: must hold a JSON object"):
        require([], {}, "f.json", "mend it")


def test_the_first_difference():
    assert difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) is None
    assert str(difference({"a": {"b": [1, 2]}}, {"a": {"b": [2, 1]}})) == "a.b is [1, 2] there and [2, 1] now"
    assert str(difference({}, {"a": "x" * 100})).endswith("x…\" now")


def test_a_journal_that_was_read_is_not_parsed_again(tmp_path, monkeypatch):
    """Two lines, read once; the torn third is cut off, and what is appended stands behind the second."""
    with Run(tmp_path / "r", MANIFEST) as run:
        run.append("a.jsonl", {"n": 1})
        run.append("a.jsonl", {"n": 2})
    path = tmp_path / "r" / "a.jsonl"
    path.write_bytes(path.read_bytes() + b'{"n": 3')
    parsed = []
    parse = records.parse
    monkeypatch.setattr(records, "parse", lambda line: parsed.append(line) or parse(line))
    with Run(tmp_path / "r") as run:
        assert run.read("a.jsonl") == [{"n": 1}, {"n": 2}]
        run.append("a.jsonl", {"n": 4})
    assert len(parsed) == 3
    assert read_lines(path)[0] == [{"n": 1}, {"n": 2}, {"n": 4}]
