"""The kernel's refusal of network sockets (seccomp(2)), to this process and to all that it starts.

Whatever asks for one is refused and named by a helper, a small process that was forked before the filter was
set. The kernel reports each attempt to it and waits for its answer. It writes who tried on stderr. The
program ends with exit code 1 (`attempted`), whether or not the failure was swallowed.

The kernel sees that a socket is asked for, and not what it would connect to. So only the command line of the
process tells of the address. A thread could not be the helper: native code may wait with Python's lock held.
Not stopped are sockets to programs of this machine (`LOCAL`), and those that were open before. io_uring and
calls of another architecture are refused without a word: they need not be about the network.
"""
import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

from redlite.store.text import short

ALLOWED = "only the endpoint of an API model or judge that is named may be reached"
LOCAL = (int(socket.AF_UNIX), 16)  # AF_NETLINK asks this kernel, not the network

# audit architecture, socket(2), seccomp(2)
_SYSCALLS = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
_IO_URING_SETUP = 425  # the same everywhere; io_uring opens sockets past any filter
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _REPORT = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x7FC00000
_ALL_THREADS, _REPORTING = 1, 1 | 1 << 3 | 1 << 4   # flags: also, a file that reports; how a failure is told
# ioctls of that file: take an attempt (seccomp_notif), answer it (seccomp_notif_resp)
_TAKE, _ANSWER = 0xC0502100, 0xC0182101
_ATTEMPT, _REPLY = struct.Struct("=QII16xQ40x"), struct.Struct("=QqiI")

_heard: list[int] = []   # the pipe, reading and writing end, on which whoever stops an attempt leaves a byte


def _filter(machine: str, refusal: int) -> list[tuple[int, int, int, int]]:
    """The classic BPF program: (operation, jump if true, jump if false, operand) for each line.

    refusal  what is done to socket(2) of a network family; what would go past the filter is always refused

    Jumps are counted from the next line.
    """
    architecture, socket_call, _ = _SYSCALLS[machine]
    return [
        (_LOAD, 0, 0, 4), (_EQUAL, 0, 8, architecture),            # calls of another architecture: refused
        (_LOAD, 0, 0, 0), (_AT_LEAST, 6, 0, 0x40000000),           # x32 calls: refused
        (_EQUAL, 5, 0, _IO_URING_SETUP), (_EQUAL, 0, 3, socket_call),
        (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, LOCAL[0]), (_EQUAL, 0, 2, LOCAL[1]),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, refusal),
    ]


class _Line(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_uint16), ("true", ctypes.c_uint8), ("false", ctypes.c_uint8),
                ("operand", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("lines", ctypes.POINTER(_Line))]


def seal() -> bool:
    """Have the kernel refuse every network socket to this process, its threads and its children, for good.

    Returns whether the kernel does. It does not on other systems than Linux on x86-64 or arm64, nor where
    seccomp is not allowed. Where it cannot report (before Linux 5.7, or within another program that has it
    report) it refuses without a word.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _SYSCALLS or sys.byteorder != "little":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges = 38
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    _heard[:] = os.pipe()
    os.set_blocking(_heard[0], False)
    way = _start_helper()
    reports = _set_filter(libc, machine, _REPORT, _REPORTING)
    if reports < 0:
        way.close()     # which ends the helper
        return _set_filter(libc, machine, _REFUSE, _ALL_THREADS) == 0
    socket.send_fds(way, [b"!"], [reports])
    os.close(reports)
    way.close()
    return True


def _set_filter(libc: ctypes.CDLL, machine: str, refusal: int, flags: int) -> int:
    """What seccomp(2) returns: below 0 for a failure."""
    lines = _filter(machine, refusal)
    program = _Program(len(lines), (_Line * len(lines))(*(_Line(*line) for line in lines)))
    return int(libc.syscall(_SYSCALLS[machine][2], 1, flags, ctypes.byref(program)))


def remember() -> None:
    """Let the program hear of an attempt that was stopped in this process, which may be a child of it."""
    if _heard:
        os.write(_heard[1], b"!")


def attempted() -> bool:
    """Whether an attempt to reach the network was stopped in this process or in one that it started."""
    try:
        return bool(_heard and os.read(_heard[0], 1))
    except BlockingIOError:
        return False


def opening(family: int) -> str:
    """What was tried, of the family of a socket that was asked for; Python's own -1 is the Internet's."""
    try:
        name = socket.AddressFamily(family if family != -1 else socket.AF_INET).name
    except ValueError:
        name = f"family {family}"
    return f"to open a network socket ({name})"


# The helper


def _start_helper() -> socket.socket:
    """Fork the helper; the socket on which it waits for the file that reports."""
    ours, its = socket.socketpair()
    program, between = os.getpid(), os.fork()
    if between:
        its.close()
        os.waitpid(between, 0)
        return ours
    try:
        if os.fork() == 0:  # no child of the program, which may wait for all of its children
            ours.close()
            _help(its, program)
    finally:
        os._exit(0)


def _help(way: socket.socket, program: int) -> None:
    """The helper's life: it ends when no process is left that the filter holds for."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)   # the program's signals, which reach its whole group
    kept = (2, way.fileno(), _heard[1])
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:   # such as a pipe whose reader waits for the program's end
            with suppress(OSError):
                os.close(int(name))
    _, files, _, _ = socket.recv_fds(way, 1, 1)
    if not files:
        return
    events, said = select.poll(), set[str]()
    events.register(files[0], select.POLLIN)
    while not events.poll()[0][1] & select.POLLHUP:
        attempt = bytearray(_ATTEMPT.size)
        try:
            fcntl.ioctl(files[0], _TAKE, attempt)
        except OSError:     # its process was killed meanwhile
            continue
        number, thread, _, family = _ATTEMPT.unpack(attempt)
        remember()
        who, what = _named(thread, program), opening(family & 0xFFFFFFFF)
        if who not in said and sys.stderr:      # a file that was closed may be another's by now
            said.add(who)
            with suppress(OSError):     # nobody reads it; the exit code still tells
                os.write(2, f"redlite: the network is closed: {who} tried {what}; {ALLOWED}\n".encode())
        with suppress(OSError):     # likewise
            fcntl.ioctl(files[0], _ANSWER, bytearray(_REPLY.pack(number, 0, -errno.EACCES, 0)))


def _named(thread: int, program: int) -> str:
    """Who made an attempt, as /proc tells."""
    try:
        with open(f"/proc/{thread}/status") as status, open(f"/proc/{thread}/cmdline", "rb") as words:
            process = int(re.findall(r"^Tgid:\s*(\d+)", status.read(), re.MULTILINE)[0])
            command = words.read().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    except (OSError, IndexError):
        return f"a process that has ended ({thread})"
    if process == program:
        return "native code in this program"
    return f"process {process}, {short(command, 200)},"
