"""The arrows between packages, the few places that open sockets or write files, and the longest line.

Everything is read from the sources with ast. Two tests import as well: to see what really comes along, and
what there is.
"""
import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_LINE = 110

# A package may import those of lower ranks. Those of one rank do not import each other.
RANKS = {
    "errors": 0, "answer": 0, "stats": 0, "data": 0, "kernels": 0, "loss": 1, "store": 1, "text": 2,
    "model": 2, "weights": 3, "inference": 4, "inspection": 4, "net": 5, "judges": 6, "bench": 7,
    "redteam": 8, "training": 8, "report": 7, "organism": 9, "perf": 9, "cli": 10
}
NETWORK = {"socket", "ssl", "asyncio", "requests", "http", "urllib3", "socketserver", "smtplib", "ftplib"}
# perf/client.py has an echo server on loopback to measure the client against.
NETWORK_MAY = {"net", "redlite/perf/client.py"}
WRITES = {"write_text", "write_bytes", "rename", "replace", "unlink", "rmtree", "save_file"}
# Who may write files beside store: a package or a file, and what it writes.
WRITERS = {
    "cli": "files that a user names, as perf --save",
    "perf": "what it measures with: files of its own, counters of the system",
    "redlite/training/checkpoints.py": "folders of tensors, beside their place and then renamed",
    "redlite/judges/linear_training.py": "a judge that was fitted, for the repository",
}


@cache
def sources() -> dict[str, ast.Module]:
    """Every file of redlite by its path from the repository's root."""
    paths = [
        path for path in (ROOT / "redlite").rglob("*.py") if "kernels" not in path.parts[len(ROOT.parts):]
    ]
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)
    }


def package(path: str) -> str:
    """redlite/net/client.py → net; redlite/loss.py → loss; redlite/__init__.py → ""."""
    name = path.split("/")[1].removesuffix(".py")
    return "" if name == "__init__" else name


def imports(tree: ast.Module, top: bool = False) -> set[str]:
    """The modules that a file names in imports; those for type checkers only are left out.

    top  those outside functions alone, which are what importing the file imports
    """
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            stack += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if not (top and isinstance(node, ast.FunctionDef)):
            stack += ast.iter_child_nodes(node)
    return found


def modules(files: dict[str, ast.Module]) -> dict[str, ast.Module]:
    """The same by the module's name."""
    named = {path.removesuffix(".py").removesuffix("/__init__"): tree for path, tree in files.items()}
    return {name.replace("/", "."): tree for name, tree in named.items()}


def broken_arrows(files: dict[str, ast.Module]) -> list[str]:
    """Each import that goes up, or to a package of the same rank."""
    faults = []
    for path, tree in files.items():
        here = package(path)
        if not here:
            continue
        for name in imports(tree):
            parts = name.split(".")
            there = parts[1] if parts[0] == "redlite" and len(parts) > 1 else ""
            if there not in RANKS or there == here:
                continue
            if RANKS[here] <= RANKS[there]:
                faults.append(f"{path} imports redlite.{there}")
    return sorted(set(faults))


def reaches(files: dict[str, ast.Module], start: str, wanted: set[str]) -> str:
    """A chain of imports from a package of redlite to one of the wanted modules; "" if there is none."""
    trees = modules(files)
    queue = [[name] for name in trees if name.split(".")[1:2] == [start]]
    seen = {chain[0] for chain in queue}
    while queue:
        chain = queue.pop(0)
        for name in imports(trees[chain[-1]], top=True):
            if name.split(".")[0] in wanted or name in wanted:
                return " → ".join([*chain, name])
            if name in trees and name not in seen:
                seen.add(name)
                queue.append([*chain, name])
    return ""


def network_users(files: dict[str, ast.Module]) -> list[str]:
    """Files outside net that import what opens sockets."""
    return [path for path, tree in files.items() if {package(path), path}.isdisjoint(NETWORK_MAY)
            and NETWORK & {name.split(".")[0] for name in imports(tree)}]


def writes(tree: ast.Module) -> set[str]:
    """The calls in a file that write, move or remove files. str.replace and dataclasses.replace are none."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text = ast.unparse(node)
        modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
        given = "".join(str(mode.value) for mode in modes if isinstance(mode, ast.Constant))
        opens = name == "open" and set(given) & set("wax+")
        if opens or name in WRITES and (name != "replace" or text.startswith("os.")):
            found.add(text)
    return found


def cycles(files: dict[str, ast.Module]) -> list[str]:
    """Files that import each other at import time, in a circle."""
    trees = modules(files)
    after = {
        name: {n
               for n in imports(tree, top=True)
               if n in trees and n != name}
        for name, tree in trees.items()
    }
    done: set[str] = set()
    while free := [name for name in after if name not in done and after[name] <= done]:
        done |= set(free)
    return sorted(after.keys() - done)


def test_no_import_goes_up():
    assert broken_arrows(sources()) == []


@pytest.mark.parametrize("package", ["store", "text", "net", "report", "stats"])
def test_light_packages_import_no_torch(package):
    served = [f"redlite/net/{name}.py" for name in ("serve", "batcher", "chat_request")]    # they run a model
    files = {path: tree for path, tree in sources().items() if path not in served}
    assert reaches(files, package, {"torch", "redlite.kernels"}) == ""


def test_torch_does_not_come_along_in_fact():
    names = [path.removesuffix(".py").replace("/", ".") for path in sources()
             if package(path) in ("store", "text") and not path.endswith("__init__.py")]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert len(names) > 5 and done.returncode == 0


def test_kernels_import_nothing_of_redlite():
    for path in (ROOT / "kernels").rglob("*.py"):
        found = imports(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in found if name.split(".")[0] == "redlite"], path


def test_only_net_opens_sockets():
    assert network_users(sources()) == []


def test_only_store_writes_run_directories():
    faults = []
    for path, tree in sources().items():
        if {package(path), path}.isdisjoint({"store", *WRITERS}):
            faults += [f"{path}: {call}" for call in sorted(writes(tree))]
    assert faults == []


def test_no_file_imports_itself_in_a_circle():
    assert cycles(sources()) == []


def test_no_line_is_long():
    suffixes = {".py", ".c", ".h", ".css", ".js"}
    paths = [
        path for top in ("redlite", "kernels") for path in (ROOT / top).rglob("*") if path.suffix in suffixes
    ]
    faults = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > LONGEST_LINE:
                faults.append(f"{path.relative_to(ROOT)}:{number}: {len(line)}")
    assert len(paths) > 100 and faults == []


MADE_UP = {
    "up": ("redlite/store/x.py", "def f():\n    from redlite.cli.program import guarded"),
    "sideways": ("redlite/training/x.py", "from redlite import redteam"),
    "torch": ("redlite/text/x.py", "import redlite.weights.x"),
    "network": ("redlite/redteam/x.py", "import http.client"),
    "open": ("redlite/redteam/x.py", "with open('a', 'w') as file:\n    pass"),
    "append": ("redlite/redteam/x.py", "open('a', mode='ab')"),
    "write": ("redlite/redteam/x.py", "Path('a').write_text('b'.replace('b', 'c'))"),
    "rename": ("redlite/redteam/x.py", "os.replace('a', 'b')"),
}


def test_every_rule_can_fail():
    """Each made-up source breaks its rule; read-only and type-checking code breaks none."""
    files = {name: {path: ast.parse(text)} for name, (path, text) in MADE_UP.items()}
    assert broken_arrows(files["up"]) == ["redlite/store/x.py imports redlite.cli"]
    assert broken_arrows(files["sideways"]) == ["redlite/training/x.py imports redlite.redteam"]
    heavy = {"redlite/weights/x.py": ast.parse("import torch.nn as nn"), **files["torch"]}
    assert reaches(heavy, "text", {"torch"}) == "redlite.text.x → redlite.weights.x → torch.nn"
    assert network_users(files["network"]) == ["redlite/redteam/x.py"]
    for name in ("open", "append", "write", "rename"):
        assert len(writes(*files[name].values())) == 1, name
    circle = {f"redlite/store/{a}.py": ast.parse(f"import redlite.store.{b}") for a, b in ("xy", "yx")}
    assert cycles(circle) == ["redlite.store.x", "redlite.store.y"]
    fine = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch, redlite.cli\n"
                     "text = open('a').read().replace('a', 'b')\nwith open('a', 'rb') as f:\n    pass")
    files = {"redlite/text/x.py": fine}
    assert broken_arrows(files) == [] and reaches(files, "text", {"torch"}) == "" and writes(fine) == set()


# Where a text of the library names an option: what a user is to type, which no setting stands for.
OPTIONS_MAY = {"redlite/weights/source.py", "redlite/report/redeval_page.py"}


def test_library_texts_name_no_options():
    found = []
    for path, tree in sources().items():
        if path.startswith(("redlite/cli/", "redlite/perf/")) or "argparse" in imports(tree):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and re.search(r"[\s\"']--[a-z]", ast.unparse(node)):
                found.append(f"{path}:{node.lineno}")
    assert [place for place in found if place.split(":")[0] not in OPTIONS_MAY] == []


def test_scripts_beside_the_tests_import_what_there_is():
    """No test runs these scripts: a name that has moved would be noticed when somebody needs one."""
    lost = []
    for path in sorted((ROOT / "tests" / "beside").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("redlite"):
                continue
            module = importlib.import_module(node.module)
            lost += [f"{path.name}: {node.module}.{alias.name}" for alias in node.names
                     if not hasattr(module, alias.name)
                     and not (hasattr(module, "__path__") and find_spec(f"{node.module}.{alias.name}"))]
    assert lost == []
