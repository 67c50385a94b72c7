"""The C library is the one that the sources beside it make, or it is not used: the process says why, and goes
on.
"""
import ast
import ctypes
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from redlite import kernels
from redlite.kernels.cpu import library, structs
from redlite.kernels.cpu.sources import digest

KERNELS = Path(kernels.__file__).parent
MEND = "run 'pip install .' again (in a checkout: 'python setup.py build_ext --inplace')"


def build(folder: Path, source: str) -> Path:
    """A library of one small C file, in `folder` beside a copy of the sources."""
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    shutil.copytree(KERNELS / "c", folder / "c", dirs_exist_ok=True)
    built = folder / f"_c{EXTENSION_SUFFIXES[0]}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o",
                    str(built)], input=source, text=True, check=True)
    return built


def test_no_library(tmp_path):
    (tmp_path / "_c.cpython-27-other.so").touch()  # another Python's
    assert library.load(tmp_path) == (None,
                                      "the C kernels were not built for this Python; install gcc or clang, "
                                      f"then {MEND}")
    (tmp_path / f"_c{EXTENSION_SUFFIXES[0]}").write_text("no library")
    found, reason = library.load(tmp_path)
    assert found is None and reason.startswith("the C kernels do not load (") and reason.endswith(MEND)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_library_that_is_cut_off(tmp_path, share):
    """Loading one would end the process by SIGBUS."""
    whole = build(tmp_path, "int rl_isa(void) { return 0; } const char padding[400000] = {1};").read_bytes()
    path = tmp_path / f"_c{EXTENSION_SUFFIXES[0]}"
    path.write_bytes(whole[:int(len(whole) * share)])
    assert library.load(tmp_path) == (None, f"{path} is cut off; {MEND}")


@pytest.mark.parametrize(
    "source, digest_in_it",
    [
        ("int rl_isa(void) { __builtin_trap(); }",
         "no digest"),  # older than the digest: a call would end the process
        ('const char *rl_sources(void) { return "0123456789abcdef"; }', "0123456789ab"), ])
def test_a_library_of_other_sources_is_refused(tmp_path, source, digest_in_it):
    built, here = build(tmp_path, source), digest(KERNELS / "c")[:12]
    assert library.load(tmp_path) == (None, f"{built} was built from other C sources ({digest_in_it}) than "
                                            f"{tmp_path / 'c'} ({here}); {MEND}")


def test_the_digest_is_of_names_and_bytes(tmp_path):
    shutil.copytree(KERNELS / "c", tmp_path / "c")
    assert digest(tmp_path / "c") == digest(KERNELS / "c")
    (tmp_path / "c" / "notes.txt").write_text("no source")
    assert digest(tmp_path / "c") == digest(KERNELS / "c")
    half = tmp_path / "c" / "half.h"
    half.write_text(half.read_text().replace("65504.0f", "65503.0f"))
    changed = digest(tmp_path / "c")
    assert changed != digest(KERNELS / "c")
    half.rename(half.with_name("halves.h"))
    assert digest(tmp_path / "c") not in (changed, digest(KERNELS / "c"))


def test_structs_that_differ_are_refused(tmp_path, monkeypatch):
    if library.missing():
        pytest.skip(library.missing())
    shutil.copytree(KERNELS / "c", tmp_path / "c")
    shutil.copy(library.library()._name, tmp_path)
    assert library.load(tmp_path)[1] == ""

    class Rows(ctypes.Structure):
        _fields_ = [("places", ctypes.c_void_p), *(f for f in structs.Rows._fields_ if f[0] != "places")]
    monkeypatch.setattr(structs, "Rows", Rows)
    found, reason = library.load(tmp_path)
    assert found is None and "differ from those of" in reason and reason.endswith(MEND)


@pytest.mark.slow
def test_a_stale_library_costs_speed_and_one_line_only(tmp_path):
    """A copy of the package with a library that would crash: the operations run, and `notice` says what to
    do.
    """
    package = tmp_path / "redlite"
    shutil.copytree(KERNELS.parent, package, ignore=shutil.ignore_patterns("_c*", "__pycache__", "data"))
    build(package / "kernels", "int rl_isa(void) { __builtin_trap(); }")
    program = (
        "import torch; from redlite import kernels; print(kernels.notice())\n"
        "print({op: kernels.implementation(op) for op in kernels.MODULES}, kernels.why('token_nll'))\n"
        "print(kernels.token_nll(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, -100])).tolist())")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("REDLITE_KERNELS", None)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    notice, chosen, nll = done.stdout.splitlines()
    assert notice.startswith("the reference kernels serve, which are slower: ") and notice.endswith(MEND)
    assert str(package / "kernels") in notice and notice[47:] in chosen
    served = ast.literal_eval(chosen[:chosen.index("}") + 1])
    assert served.pop("attention") == "torch-flash" and set(served.values()) == {"reference"}
    assert nll == "[1.3862943649291992, 0.0]"  # log 4
    program = "from redlite.cli import options; print(options.kernels_here())"
    helped = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True,
                            capture_output=True)
    assert helped.stdout.startswith("Kernels on CPUs: the reference kernels"), helped.stderr
    with (package / "kernels" / f"_c{EXTENSION_SUFFIXES[0]}").open("ab") as file:
        file.write(digest(package / "kernels/c").encode())  # what the library of these sources holds
    helped = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True,
                            capture_output=True)
    assert "the C library" in helped.stdout, helped.stderr


def test_unknown_modules_of_the_repository_are_no_part_of_the_package():
    for name in ("setup", "tests", "runs"):
        with pytest.raises(ModuleNotFoundError):
            __import__(f"redlite.{name}")


@pytest.mark.slow
def test_without_a_compiler_an_editable_installation_goes_on(tmp_path):
    """setuptools raises another error there than elsewhere for a library that was not built."""
    root = Path(__file__).parents[2]
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    nothing = shutil.ignore_patterns("*.so", "__pycache__", "organism")
    for name in ("redlite", "kernels", "data"):
        shutil.copytree(root / name, tmp_path / name, symlinks=True, ignore=nothing)
    done = subprocess.run([sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", "made"],
                          cwd=tmp_path, env={**os.environ, "CC": "/nonexistent"}, capture_output=True,
                          text=True)
    if "No module named 'wheel'" in done.stderr or "invalid command" in done.stderr:
        pytest.skip("setuptools is too old, or the package wheel is not installed")
    assert done.returncode == 0, done.stderr
    assert "the C kernels were not built" in done.stderr and list((tmp_path / "made").glob("redlite-*.whl"))
