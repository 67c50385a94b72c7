"""Requests/s of the client against a local server that answers after 50 ms, and their processor time."""
import asyncio
import json
import multiprocessing
import os
import resource
import tempfile
import time
from typing import Any

from redlite.net import client, offline
from redlite.net.endpoints import Endpoint
from redlite.store.run_directory import Run

DELAY = 0.05
MESSAGE = {"role": "assistant", "content": "An answer of some length. " * 8}
BODY = json.dumps({
    "id": "x", "object": "chat.completion", "model": "echo",
    "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 48, "total_tokens": 68}}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class _Echo(asyncio.Protocol):
    """As little of HTTP as one client needs, so that the server is not what is measured."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if found and len(body) >= int(length):
            self.data = b""
            asyncio.get_running_loop().call_later(DELAY, self.transport.write, HEAD + BODY)


def _processor_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _serve(pipe: Any) -> None:
    """Serve until something comes out of the pipe. The port goes into it, and at the end the seconds used."""
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.1)
        pipe.send(_processor_seconds())
    asyncio.run(run())


def run(requests: int = 4000, concurrency: int = 64) -> dict[str, float]:
    """Ask `requests` different questions and journal the answers as any run does. Needs loopback only."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    os.environ.setdefault("OPENAI_API_KEY", "no-key-is-needed")
    calls = []
    for i in range(requests):
        message = {"role": "user", "content": f"Question number {i}: " + "how are things? " * 10}
        calls.append(client.Call([message], {"max_tokens": 64, "temperature": 0.0}))
    with tempfile.TemporaryDirectory() as folder, Run(folder, {}) as directory:
        offline.allow(url)
        asker = client.Client(Endpoint("echo", url), directory, concurrency)
        list(asker.ask(calls[:concurrency]))   # connections and imports
        used, began = _processor_seconds(), time.perf_counter()
        answers = [answer for _, answer in asker.ask(calls[concurrency:])]
        took, used = time.perf_counter() - began, _processor_seconds() - used
    here.send("stop")
    served = here.recv()
    server.join()
    assert len(answers) == requests - concurrency and all(a.finish == "stop" for a in answers)
    found = {"requests_per_s": len(answers) / took, "ceiling_of_the_delay": concurrency / DELAY,
             "client_cpu_ms": 1e3 * used / len(answers), "server_cpu_ms": 1e3 * served / requests}
    print(f"client: {found['requests_per_s']:.0f} requests/s at concurrency {concurrency} "
          f"against {1e3 * DELAY:.0f} ms (the delay allows {found['ceiling_of_the_delay']:.0f}); "
          f"processor time a request: client {found['client_cpu_ms']:.2f} ms, "
          f"which one interpreter lock must hold, server {found['server_cpu_ms']:.2f} ms")
    return found
