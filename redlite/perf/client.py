"""Requests/s of the client against a server on this machine that answers after 50 ms, and what they cost in processor time on both sides."""
import asyncio
import json
import multiprocessing
import os
import resource
import tempfile
import time

from redlite.net import client, offline
from redlite.net.endpoints import Endpoint
from redlite.store.run_directory import Run

DELAY = 0.05
BODY = json.dumps({"id": "x", "object": "chat.completion", "model": "echo", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer of some length. " * 8}}],
                   "usage": {"prompt_tokens": 20, "completion_tokens": 48, "total_tokens": 68}}).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class _Echo(asyncio.Protocol):
    """As little of HTTP as one client needs, so that the server is not what is measured."""

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self.data = b""
            asyncio.get_running_loop().call_later(DELAY, self.transport.write, RESPONSE)


def _serve(pipe) -> None:
    async def run():
        server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(used.ru_utime + used.ru_stime)
    asyncio.run(run())


def run(requests: int = 4000, concurrency: int = 64) -> dict:
    """Ask `requests` different questions and journal the answers as any run does. Needs loopback only."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    os.environ.setdefault("OPENAI_API_KEY", "no-key-is-needed")
    calls = [client.Call([{"role": "user", "content": f"Question number {i}: " + "how are things? " * 10}], {"max_tokens": 64, "temperature": 0.0}) for i in range(requests)]
    with tempfile.TemporaryDirectory() as folder, Run(folder, {}) as directory:
        offline.allow(f"http://127.0.0.1:{port}/v1")
        asker = client.Client(Endpoint("echo", f"http://127.0.0.1:{port}/v1"), directory, concurrency)
        list(asker.ask(calls[:concurrency]))   # connections and imports
        used, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        answers = [answer for _, answer in asker.ask(calls[concurrency:])]
        took, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    here.send("stop")
    served = here.recv()
    server.join()
    assert len(answers) == requests - concurrency and all(a.finish == "stop" for a in answers)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    found = {"requests_per_s": len(answers) / took, "ceiling_of_the_delay": concurrency / DELAY, "client_cpu_ms": 1e3 * cpu / len(answers), "server_cpu_ms": 1e3 * served / requests}
    print(f"client: {found['requests_per_s']:.0f} requests/s at concurrency {concurrency} against {1e3 * DELAY:.0f} ms (the delay allows {found['ceiling_of_the_delay']:.0f}); "
          f"processor time a request: client {found['client_cpu_ms']:.2f} ms, which one interpreter lock must hold, server {found['server_cpu_ms']:.2f} ms")
    return found
