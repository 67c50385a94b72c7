"""The closed network: what is stopped, by whom it says, and what stays open; every case in a process of its
own.
"""
import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

SEALABLE = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


def run(code: str, path=None, **environment):
    """A Python process that runs `code` with redlite.offline as `offline`."""
    env = {**{k: v for k, v in os.environ.items() if "proxy" not in k.lower()}, **environment}
    if path:
        env["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [env.get("PYTHONPATH")])])
    code = "import socket, sys\nfrom redlite.net import offline\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)


@pytest.fixture
def listener():
    """A server on loopback that counts its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = []

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                seen.append(1)
                connection.close()
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("attempt, what", [
    ("socket.create_connection(('127.0.0.1', PORT))", "to look up '127.0.0.1'"),
    ("socket.socket().connect(('127.0.0.1', PORT))", "to reach 127.0.0.1:PORT"),
    ("socket.socket().connect_ex(('127.0.0.1', PORT))", "to reach 127.0.0.1:PORT"),
    ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
     "to reach 127.0.0.1:PORT"),
    ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('127.0.0.1', PORT))",
     "to reach 127.0.0.1:PORT"),
    ("socket.socket(socket.AF_INET6).connect(('::1', PORT))", "to reach ::1:PORT"),
    ("socket.gethostbyname('tracker.example')", "to look up 'tracker.example'"),
    ("socket.gethostbyaddr('192.0.2.1')", "to look up '192.0.2.1'"),
    ("socket.getnameinfo(('192.0.2.1', 80), 0)", "to look up the name of 192.0.2.1"),
    ("socket.getaddrinfo(b'tracker.example', 80)", "to look up 'tracker.example'"),
    ("socket.socket().bind(('0.0.0.0', 0))", "to listen at 0.0.0.0:0"),
    ("__import__('urllib.request').request.urlopen('http://tracker.example/')",
     "to look up 'tracker.example'"),
    ("__import__('requests').get('https://tracker.example/')", "to look up 'tracker.example'"),
    ("__import__('http.client').client.HTTPConnection('127.0.0.1', PORT).connect()",
     "to look up '127.0.0.1'"),
    ("__import__('asyncio').run(__import__('asyncio').open_connection('127.0.0.1', PORT))", "to "),
])
def test_every_way_out_is_closed(listener, attempt, what):
    port, seen = listener
    done = run(f"offline.close()\ntry:\n    {attempt}\nexcept BaseException: pass\nprint('went on')".replace(
        "PORT", str(port)))
    assert done.returncode == offline_exit() and "went on" not in done.stdout
    assert what.replace("PORT", str(port)) in done.stderr and done.stderr.count("\n") == 1 and not seen


def offline_exit() -> int:
    return 1  # the contract's "failed"


def test_dependency_that_phones_home_is_named_and_stopped(tmp_path, listener):
    port, seen = listener
    (tmp_path / "helpful_dependency.py").write_text(textwrap.dedent(f"""
        import threading, urllib.request
        def report():
            try:
                urllib.request.urlopen("http://127.0.0.1:{port}/usage", timeout=5)
            except BaseException:
                pass
        thread = threading.Thread(target=report)
        thread.start()
        thread.join()
    """))
    done = run("offline.close()\nimport helpful_dependency, time\ntime.sleep(5)\nprint('went on')", tmp_path)
    assert done.returncode == 1 and "went on" not in done.stdout and not seen
    assert "helpful_dependency" in done.stderr and "helpful_dependency.py, line 5" in done.stderr


def test_command_is_closed_before_its_imports(tmp_path, listener):
    port, seen = listener
    (tmp_path / "torch.py").write_text(f"import socket\nsocket.socket().connect(('127.0.0.1', {port}))\n")
    done = run(
        "sys.argv = ['safealign', 'prove']\nfrom redlite.cli.safealign import main\nassert 'torch' not in "
        "sys.modules and 'requests' not in sys.modules\nsys.exit(main())",
        tmp_path)
    assert done.returncode == 1 and not seen, done.stderr
    assert f"torch ({tmp_path}/torch.py, line 2) tried to reach 127.0.0.1:{port}" in done.stderr


def test_only_the_endpoint_is_open(listener):
    port, seen = listener
    code = f"""
        offline.close()
        offline.allow("http://127.0.0.1:{port}/v1")
        socket.create_connection(("127.0.0.1", {port}), 5).close()
        print("reached")
        sys.stdout.flush()
        socket.create_connection(("127.0.0.1", {port} ^ 1), 5)
    """
    done = run(code)
    assert done.stdout == "reached\n" and done.returncode == 1 and f"127.0.0.1:{port ^ 1}" in done.stderr


def test_name_of_the_endpoint_opens_its_addresses(listener):
    port, _ = listener
    done = run(
        f"offline.close()\noffline.allow('http://localhost:{port}/v1')\n"
        f"socket.create_connection(('localhost', {port}), 5).close()\nprint('reached')"
    )
    assert done.stdout == "reached\n", done.stderr
    done = run(
        f"offline.close()\noffline.allow('http://localhost:{port}/v1')\n"
        f"socket.socket().connect(('127.0.0.1', {port}))"
    )
    assert done.returncode == 1, "an address that no look-up of the endpoint gave was reached"


def test_proxy_of_the_environment_is_open():
    done = run("offline.close()\noffline.allow('https://api.example/v1')\nprint(sorted(offline._places))",
               https_proxy="http://user:word@proxy.example:3128")
    assert done.stdout.strip() == "[('api.example', 443), ('proxy.example', 3128)]"
    done = run("offline.close()\noffline.allow('https://api.example/v1')\nprint(sorted(offline._places))",
               https_proxy="proxy.example:3128",
               no_proxy="api.example")
    assert done.stdout.strip() == "[('api.example', 443)]"


def test_local_sockets_stay_open():
    done = run("""
        offline.close()
        import asyncio, multiprocessing
        a, b = socket.socketpair()
        a.send(b"x")
        asyncio.run(asyncio.sleep(0))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.apply(len, ([1, 2],)), b.recv(1))
    """)
    assert done.stdout == "2 b'x'\n", done.stderr


def test_closed_for_a_block_only(listener):
    port, seen = listener
    done = run(
        f"with offline.closed():\n    offline.allow('http://127.0.0.1:1')\nprint(offline._places)\n"
        f"socket.create_connection(('127.0.0.1', {port}), 5).close()\nprint('open')"
    )
    assert done.stdout == "set()\nopen\n", done.stderr


@pytest.mark.skipif(not SEALABLE, reason="the kernel's refusal is for Linux on x86-64 and arm64")
def test_kernel_refuses_native_code_and_children():
    done = run("""
        import ctypes, errno, os, subprocess
        if not offline.seal():
            print("no seccomp here"); sys.exit()
        libc = ctypes.CDLL(None, use_errno=True)
        for family in (socket.AF_INET, socket.AF_INET6, 17):
            assert libc.socket(int(family), 1, 0) == -1 and ctypes.get_errno() == errno.EACCES, family
        assert libc.syscall(425, 8, 0) == -1 and ctypes.get_errno() == errno.EACCES
        assert libc.socket(int(socket.AF_UNIX), 1, 0) >= 0
        command = [sys.executable, "-c", "import socket; socket.socket()"]
        child = subprocess.run(command, capture_output=True, text=True)
        assert "PermissionError" in child.stderr, child.stderr
        print("sealed")
    """)
    if done.stdout == "no seccomp here\n":
        pytest.skip("this container does not allow seccomp filters")
    assert done.stdout == "sealed\n", done.stderr


@pytest.mark.skipif(not SEALABLE, reason="the kernel's refusal is for Linux on x86-64 and arm64")
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "0<&- 2>&-", "2>&1 >/dev/null | true"])
def test_an_attempt_is_heard_of_where_nobody_reads(tmp_path, stderr):
    """The helper must live on where it cannot write who tried."""
    if not sealed_here():
        pytest.skip("this container does not allow seccomp filters")
    code = f"""
        import ctypes
        from redlite.net import kernel, offline
        offline.close(); offline.seal()
        libc, found = ctypes.CDLL(None, use_errno=True), []
        for _ in range(2):
            found += [libc.socket(2, 1, 0), ctypes.get_errno()]
        open({str(tmp_path / "found")!r}, "w").write(str([*found, kernel.attempted()]))
    """
    (tmp_path / "tries.py").write_text(textwrap.dedent(code))
    subprocess.run(["sh", "-c", f"{sys.executable} {tmp_path}/tries.py {stderr}"], timeout=60)
    assert (tmp_path / "found").read_text() == str([-1, errno.EACCES, -1, errno.EACCES, True])


# A dependency that does something when it is imported, swallows what comes of it, and is itself after all.
DEPENDENCY = """
import importlib, os, sys
try:
    exec(compile(os.environ["ATTEMPT"], __file__, "exec"), {"__name__": __name__})
except BaseException:
    pass
here = os.path.dirname(__file__)
sys.path.remove(here)
del sys.modules["sentencepiece"]
sys.modules["sentencepiece"] = importlib.import_module("sentencepiece")
"""
NATIVE = "import ctypes; ctypes.CDLL(None).socket(2, 1, 0)"
CURL = "import subprocess; subprocess.run(['curl', '-s', 'http://203.0.113.9:81/x'])"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])"
SPAWN = """
import multiprocessing, socket
p = multiprocessing.get_context("spawn").Process(target=socket.socket)
p.start()
p.join()
"""
FORK = """
import multiprocessing, socket
def child():
    socket.socket().connect(("203.0.113.9", 81))
p = multiprocessing.get_context("fork").Process(target=child)
p.start()
p.join()
"""


def command_of(tmp_path, attempt: str, module: str, *arguments: str, **environment: str):
    """A command with such a dependency."""
    (tmp_path / "dependency").mkdir()
    (tmp_path / "dependency/sentencepiece.py").write_text(DEPENDENCY)
    path = os.pathsep.join([str(tmp_path / "dependency"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, "-m", f"redlite.cli.{module}", *arguments], capture_output=True,
                          text=True, timeout=120, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": path, "ATTEMPT": attempt, **environment})


def sealed_here() -> bool:
    return "True" in run("print(offline.seal())").stdout


@pytest.mark.slow
@pytest.mark.skipif(not SEALABLE, reason="the kernel's refusal is for Linux on x86-64 and arm64")
@pytest.mark.parametrize("attempt, named", [
    ("import socket; socket.socket().connect(('203.0.113.9', 81))",
     "sentencepiece.py, line 1) tried to reach 203.0.113.9:81"),
    ("import socket; s = socket.socket(); s.setsockopt(6, 1, 1); s.connect_ex(('203.0.113.9', 81))",
     "sentencepiece.py, line 1) tried to reach 203.0.113.9:81"),
    ("import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.9', 81))", "to reach 203.0.113.9:81"),
    ("import _socket; _socket.socket()", "line 1) tried to open a network socket (AF_INET)"),
    ("import socket; socket.socket(17, 3)", "line 1) tried to open a network socket (AF_PACKET)"),
    ("import socket; socket.socket(40, 1)", "line 1) tried to open a network socket (AF_VSOCK)"),
    ("import ctypes; ctypes.CDLL(None).socket(38, 5, 0)",
     "native code in this program tried to open a network socket (AF_ALG)"),
    ("import ctypes; ctypes.CDLL(None).socket(39, 1, 0)", "to open a network socket (family 39)"),
    ("import torch.distributed as d; d.TCPStore('127.0.0.1', 0, 1, True, wait_for_workers=False)",
     "native code in this program tried to open a network socket (AF_INET"),
    ("import socket; socket.socket(16, 3).bind((0, 0))", ""),
    (FORK, "sentencepiece.py, line 4) tried to reach 203.0.113.9:81"),
    (NATIVE, "native code in this program tried to open a network socket"),
    (CURL, "'curl -s http://203.0.113.9:81/x', tried to open a network socket"),
    (CHILD, "-c import socket; socket.socket()', tried to open a network socket"),
    (SPAWN, "multiprocessing.spawn import spawn_main"), ("pass", ""),
])
def test_what_swallows_the_refusal_is_named_all_the_same(tmp_path, attempt, named):
    if not sealed_here():
        pytest.skip("this container does not allow seccomp filters")
    if attempt == CURL and not shutil.which("curl"):
        pytest.skip("there is no curl here")
    done = command_of(tmp_path, attempt, "redeval", "--limit", "1", "--max-new-tokens", "60", "--prompt",
                      "standard")
    assert done.returncode == bool(named), done.stderr
    assert named in done.stderr and done.stderr.count("the network is closed") == bool(named)


@pytest.mark.slow
@pytest.mark.skipif(not SEALABLE, reason="the kernel's refusal is for Linux on x86-64 and arm64")
@pytest.mark.parametrize("module, arguments, environment", [
    ("redeval", ["--dry-run"], {}), ("redeval", ["--dry-run"], {"WORLD_SIZE": "2"}),
    ("collect", ["--limit", "1", "--conversations", "1", "--max-new-tokens", "30"], {}),
    ("safealign", ["--dry-run"], {}), ("safealign", ["--dry-run"], {"WORLD_SIZE": "2"}),
    ("safealign", ["audit", "--dry-run"], {"WORLD_SIZE": "2", "RANK": "0"}),
    ("serve", ["--port", "0", "--template", "nosuch"], {}),
])
def test_children_are_named_on_every_command(tmp_path, module, arguments, environment):
    """WORLD_SIZE alone is no torchrun, and opens nothing."""
    if not sealed_here():
        pytest.skip("this container does not allow seccomp filters")
    done = command_of(tmp_path, CHILD, module, *arguments, **environment)
    assert "-c import socket; socket.socket()', tried to open a network socket" in done.stderr
    assert done.returncode == (2 if "nosuch" in arguments else 1), done.stderr


def test_nothing_of_others_is_loaded_before_a_command_knows_its_options():
    """The kernel's refusal begins when the options are read: what is imported before could still get out."""
    code = """
        import sys
        from redlite.cli import collect, redeval, safealign, serve
        for program in (redeval, safealign):
            for describe, _ in program.COMMANDS.values():
                describe("x")
        serve._parser()
        print(sorted({"numpy", "torch", "requests", "safetensors", "sentencepiece"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
