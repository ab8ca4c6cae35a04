"""The real service, once per session, on a free port; and photos that every installation has."""

from __future__ import annotations

import http.server
import importlib.metadata
import importlib.util
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.service import ROOT, Service, config, free_port, running
from serve_app.ops import manifests
from serve_app.ops.serve_config import apart
from serve_app.vision import sample_photos

SHARED = ROOT.parent / "shared"  # photos and weights that may not be part of this repository; used where present


def pytest_report_header() -> str:
    packages = ("ray", "torch", "ultralytics-opencv-headless", "pillow", "fastapi")
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n`, tests that share a service or write the same files run in one process: the others' modules may not."""
    for item in items:
        shared = [name for name in ("service", "graph", "rendered") if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else item.module.__name__))


@pytest.fixture(scope="session")
def bus() -> bytes:
    return sample_photos.bus()


@pytest.fixture(scope="session")
def zidane() -> bytes:
    return sample_photos.zidane()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with running(config(free_port())) as service:
        yield service


@pytest.fixture(scope="session")
def server(service: Service) -> str:
    return service.url


@pytest.fixture(scope="session")
def graph_config() -> dict[str, Any]:
    """Each stage in a replica of its own, batches of up to 8."""
    return apart(config(free_port()))


@pytest.fixture(scope="session")
def graph(graph_config: dict[str, Any]) -> Iterator[Service]:
    """The same service as it runs on a cluster; `service` has all stages in one process, as on a laptop."""
    with running(graph_config) as service:
        yield service


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as opened:
        yield opened


@contextmanager
def http_server(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server on loopback that runs in a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:  # else the thread keeps the process of a test that failed alive
        server.shutdown()
        thread.join()
        server.server_close()


def script(path: Path) -> Any:
    """A script outside of any package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kubectl() -> str:
    """The one that `make test` installs, else any; skips the test without."""
    found = shutil.which("kubectl", path=f"{ROOT}/.venv/bin") or shutil.which("kubectl")
    return found or pytest.skip("no kubectl: make .venv/bin/kubectl")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every overlay by its name, as it would be applied."""
    manifests.write()
    folder, files = tmp_path_factory.mktemp("build"), {}
    for overlay in manifests.overlays():
        files[overlay.name] = folder / f"{overlay.name}.yaml"
        built = subprocess.run([kubectl(), "kustomize", str(overlay)], capture_output=True, check=True)
        files[overlay.name].write_bytes(built.stdout)
    return files


def shared(*parts: str) -> Path:
    """A file or folder of the shared data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} beside this checkout")
    return path
