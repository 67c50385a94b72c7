"""The closed network: no connection and no name look-up, except to the endpoints that a command names.

`close()` adds a Python audit hook (PEP 578). The hook sees every socket of this process, whichever library
made it, and cannot be removed again. A command calls it before it imports torch or requests. An attempt to
reach anything that was not allowed prints what tried to reach what, and ends the process with exit code 1 at
once. An exception would not do: the very code that is to be stopped could swallow it, and it would only end
its thread. Journals lose nothing by that.

A Python hook does not see native code that makes system calls itself, nor other programs that are started. On
Linux (x86-64 and arm64), where no endpoint is allowed, `seal()` therefore has the kernel refuse network
sockets too (kernel.py), to this process and to all that it starts.
"""
import _socket
import os
import socket
import sys
import sysconfig
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from redlite.errors import Error
from redlite.net import kernel

EXIT = 1
PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080}      # of addresses that name none; 80 for the others
_LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
# packages that open sockets on behalf of their callers
_PASS_ON = ("urllib3", "requests", "http", "socketserver")
_TRIED = (("127.0.0.1", 0), ("::1", 0))  # where urllib3 listens when it is imported, to find out about IPv6

_closed = False
_hooked = False
_sealed = False
_STAND_INS = (socket.AF_INET, socket.AF_INET6)  # whose addresses tell where a program wants to
_expected: set[int] = set()                  # threads that make a socket by `_opened`
_hosts: set[str] = set()                     # names that may be looked up
_places: set[tuple[str, int]] = set()        # (host or address, port) that may be connected to
_listening: set[tuple[str, int]] = set()     # (address, port) that may be listened on
_look_up = socket.getaddrinfo
_init: Any = socket.socket.__init__


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
    elif event == "socket.__new__" and _sealed and threading.get_ident() not in _expected:
        _check_family(arguments[1])


def _check_family(family: int) -> None:
    # It was made past socket.socket, so what it would reach is never seen.
    if family not in kernel.LOCAL:
        _stop(kernel.opening(family))


def _is_ours(address: str) -> bool:
    """Whether this address literal was allowed; looking it up then asks nobody."""
    return any(address == host for host, _ in (*_places, *_listening))


def _check(event: str, sock: socket.socket, address: Any) -> None:
    # Another process of this machine, or its kernel; or a socket that is connected, and was checked then.
    if sock.family in kernel.LOCAL or address is None:
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
        kernel.remember()   # a forked child ends alone: its program must hear of it
        sys.stdout.flush()
        print(f"redlite: the network is closed: {_culprit()} tried {what}; {kernel.ALLOWED}", file=sys.stderr,
              flush=True)
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


# Sealed: the kernel refuses as well


def seal() -> bool:
    """Have the kernel refuse network sockets to this process and its children, for good; see seal.py.

    Returns whether the kernel does. Then Python's Internet sockets are made over sockets that lead nowhere.
    So the hook still sees, and names, where a program tries to connect to. Asking for a socket of another
    network family (packets, virtual machines, Bluetooth) ends the process.
    """
    global _sealed
    if not _sealed and kernel.seal():
        _sealed = True
        socket.socket.__init__ = _opened  # type: ignore[method-assign]
        socket.socket.setsockopt = _set_option  # type: ignore[method-assign, assignment]
    return _sealed


def _opened(self: socket.socket, family: int = -1, type: int = -1, proto: int = -1,
            fileno: int | None = None) -> None:
    """socket.socket.__init__, of a network family over a local socket: see `seal`."""
    named = socket.AF_INET if family == -1 and fileno is None else family
    if fileno is None and named not in _STAND_INS:
        _check_family(named)
    elif fileno is None:
        kind = socket.SOCK_STREAM if type == -1 else type
        stream = kind & 0xF == socket.SOCK_STREAM
        local = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        family, type, proto, fileno = named, kind, max(proto, 0), local.detach()
    _expected.add(threading.get_ident())
    try:
        _init(self, family, type, proto, fileno)
    finally:
        _expected.discard(threading.get_ident())


def _set_option(self: socket.socket, *arguments: Any) -> None:
    """socket.setsockopt; a local socket in a network socket's place has not all of its options."""
    try:
        _socket.socket.setsockopt(self, *arguments)
    except OSError:
        if self.family in kernel.LOCAL:
            raise
