"""The closed network: no connection and no name look-up, except to the endpoints that a command names.

`close()` adds a Python audit hook (PEP 578). The hook sees every socket of this process, whichever library
made it, and cannot be removed again. A command calls it before it imports torch or requests. An attempt to
reach anything that was not allowed prints what tried to reach what, and ends the process with exit code 1 at
once. An exception would not do: the very code that is to be stopped could swallow it, and it would only end
its thread. Journals lose nothing by that.

A Python hook does not see native code that makes system calls itself, nor other programs that are started. On
Linux (x86-64 and arm64), where no endpoint is allowed, `seal()` therefore has the kernel refuse network
sockets too (seccomp(2)), to this process and to all that it starts.
"""
import ctypes
import errno
import os
import platform
import socket
import sys
import sysconfig
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from redlite.errors import Error

EXIT = 1
PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}      # of addresses that name none; 80 for the others
_LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
# packages that open sockets on behalf of their callers
_PASS_ON = ("urllib3", "requests", "http", "socketserver")
_TRIED = (("127.0.0.1", 0), ("::1", 0))  # where urllib3 listens when it is imported, to find out about IPv6

_closed = False
_hooked = False
_hosts: set[str] = set()                     # names that may be looked up
_places: set[tuple[str, int]] = set()        # (host or address, port) that may be connected to
_listening: set[tuple[str, int]] = set()     # (address, port) that may be listened on
_look_up = socket.getaddrinfo


def close() -> None:
    """Close the network for this process. Calling it again changes nothing."""
    global _closed, _hooked
    _closed = True
    if not _hooked:
        _hooked = True
        sys.addaudithook(_hook)
        socket.getaddrinfo = _recording_look_up


@contextmanager
def closed() -> Iterator[None]:
    """The network closed for a block, then as before: for callers of a command."""
    global _closed
    before, hosts, places, listening = _closed, set(_hosts), set(_places), set(_listening)
    close()
    try:
        yield
    finally:
        _closed = before
        _hosts.intersection_update(hosts)
        _places.intersection_update(places)
        _listening.intersection_update(listening)


def allow(url: str) -> None:
    """Open the way to one endpoint, and to the proxy that the environment names for it, if there is one."""
    parts = urllib.parse.urlsplit(url)
    _allow_place(parts)
    from urllib.request import getproxies, proxy_bypass  # here: it costs a fifth of what `--help` takes
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        try:
            _allow_place(urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}"))
        except (ValueError, AttributeError):  # no port, or no host; its password is not shown
            raise Error(
                f"the environment's proxy for {parts.scheme} addresses ({parts.scheme}_proxy or all_proxy) "
                "is no address such as http://host:3128; correct it, or unset it") from None


def _allow_place(parts: Any) -> None:
    host = parts.hostname.lower()
    _hosts.add(host)
    _places.add((host, parts.port or PORTS.get(parts.scheme, 80)))


def allow_listening(address: str, port: int) -> None:
    """Let this process accept connections at an address; it still may not make any."""
    _listening.add((address, port))


def _recording_look_up(host: Any, port: Any, *arguments: Any, **keywords: Any) -> list:
    """socket.getaddrinfo; the addresses of an allowed host become allowed with the host's ports."""
    found = _look_up(host, port, *arguments, **keywords)
    name = _text(host)
    if name in _hosts:
        ports = [p for h, p in _places if h == name]
        _places.update((str(entry[4][0]).lower(), p) for entry in found for p in ports)
    return found


def _text(host: object) -> str:
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    return text.lower()


def _hook(event: str, arguments: tuple) -> None:
    if not _closed or not event.startswith("socket."):
        return
    if event in _LOOK_UPS:
        host = _text(arguments[0])
        if arguments[0] is not None and host not in _hosts and not _is_ours(host):
            _stop(f"to look up {host!r}")
    elif event == "socket.getnameinfo":
        host = _text(arguments[0][0])
        if host not in {place for place, _ in _places}:
            _stop(f"to look up the name of {host}")
    elif event in _SENDING:
        _check(event, *arguments[:2])


def _is_ours(address: str) -> bool:
    """Whether this address literal was allowed; looking it up then asks nobody."""
    return any(address == host for host, _ in (*_places, *_listening))


def _check(event: str, sock: socket.socket, address: Any) -> None:
    # Another process of this machine; or a socket that is connected, and was checked then.
    if sock.family == socket.AF_UNIX or address is None:
        return
    place = (str(address), -1)
    if isinstance(address, tuple) and len(address) > 1:
        place = _text(address[0]), address[1]
    if event == "socket.bind":
        if place not in _listening and place not in _TRIED:
            _stop(f"to listen at {place[0]}:{place[1]}")
    elif place not in _places or sock.family not in (socket.AF_INET, socket.AF_INET6):
        _stop(f"to reach {place[0]}:{place[1]}")


def _stop(what: str) -> None:
    try:
        sys.stdout.flush()
        print(f"redlite: the network is closed: {_culprit()} tried {what}; "
              "only the endpoint of an openai: model or judge may be reached", file=sys.stderr, flush=True)
    finally:
        os._exit(EXIT)


def _culprit() -> str:
    """The code that asked for it: the innermost frame outside the standard library and HTTP libraries."""
    standard, packages = sysconfig.get_path("stdlib"), (sysconfig.get_path("purelib"),
                                                        sysconfig.get_path("platlib"))
    frame: FrameType | None = sys._getframe(1)
    last = None
    while frame:
        file = frame.f_code.co_filename
        in_package = any(file.startswith(p) for p in packages)
        own = file == __file__ or file.startswith("<frozen")
        module = frame.f_globals.get("__name__", "?")
        if not own and (in_package or not file.startswith(standard)):
            last = f"{module} ({file}, line {frame.f_lineno})"
            if module.partition(".")[0] not in _PASS_ON:
                return last
        frame = frame.f_back
    return last or "the Python standard library"


# The kernel's refusal

# audit architecture, socket(2), seccomp(2)
_SYSCALLS = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
_IO_URING_SETUP = 425  # the same everywhere; io_uring opens sockets past any filter
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_LOCAL = (int(socket.AF_UNIX), 16)  # AF_NETLINK asks this kernel, not the network


def _filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The classic BPF program: (operation, jump if true, jump if false, operand) for each line.

    Jumps are counted from the next line.
    """
    architecture, socket_call, _ = _SYSCALLS[machine]
    return [
        (_LOAD, 0, 0, 4), (_EQUAL, 0, 8, architecture),            # calls of another architecture: refused
        (_LOAD, 0, 0, 0), (_AT_LEAST, 6, 0, 0x40000000),           # x32 calls: refused
        (_EQUAL, 5, 0, _IO_URING_SETUP), (_EQUAL, 0, 3, socket_call),
        (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, _LOCAL[0]), (_EQUAL, 0, 1, _LOCAL[1]),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | errno.EACCES),
    ]


class _Line(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_uint16), ("true", ctypes.c_uint8), ("false", ctypes.c_uint8),
                ("operand", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("lines", ctypes.POINTER(_Line))]


def seal() -> bool:
    """Have the kernel refuse every network socket to this process, its threads and its children, for good.

    Returns whether the kernel does. It does not on other systems than Linux on x86-64 or arm64, nor where
    seccomp is not allowed.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _SYSCALLS or sys.byteorder != "little":
        return False

    lines = _filter(machine)
    program = _Program(len(lines), (_Line * len(lines))(*(_Line(*line) for line in lines)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, all_threads = 38, 1, 1
    if libc.prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return libc.syscall(_SYSCALLS[machine][2], set_filter, all_threads, ctypes.byref(program)) == 0
