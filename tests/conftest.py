"""The real service, once per session, on a free port; and photos that every installation has."""

from __future__ import annotations

import http.server
import importlib.metadata
import importlib.util
import io
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image

from loadtests.service import ROOT, Service, command, config, free_port, ray_files, running
from serve_app.ops import manifests
from serve_app.ops.serve_config import apart
from serve_app.vision import sample_photos

SHARED = ROOT.parent / "shared"  # photos and weights that may not be part of this repository; used where present


def pytest_report_header() -> str:
    packages = ("ray", "torch", "ultralytics-opencv-headless", "pillow", "fastapi")
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)


# Groups that take minutes start first, so that none of them is left alone at the end.
LONGEST = (
    "service", "tests.loadtests.test_drill", "account", "graph", "tests.weights.test_swaps",
    "tests.terraform.test_terraform", "tests.ops.test_monitoring", "tests.weights.test_default_model", "tests.loadtests.test_plan",
    "tests.vision.test_engines", "tests.graph.test_autoscaling", "tests.http.test_auth",
)  # fmt: skip


def users_of(item: pytest.Item | None) -> set[str]:
    """The shared fixtures that a test uses."""
    return {"service", "graph", "rendered", "account"} & set(getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Groups tests that share a service, or write the same files: one after the other, and with `-n` in one process."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = min(users_of(item), default=item.module.__name__)  # type: ignore[attr-defined]
        item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    first = [groups.pop(name) for name in LONGEST if name in groups]
    items[:] = [item for group in [*first, *groups.values()] for item in group]
    yield
    if items and hasattr(items[0].config, "workerinput"):
        assert all("@" in item.nodeid for item in items), "pytest-xdist lost the groups"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stops a shared service after its last test: an idle one takes a fifth of a core."""
    request: pytest.FixtureRequest = item._request  # type: ignore[attr-defined]
    for name in users_of(item) - users_of(nextitem) - {"rendered", "account"}:
        request._get_active_fixturedef(name).finish(request)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def bus() -> bytes:
    return sample_photos.bus()


@pytest.fixture(scope="session")
def zidane() -> bytes:
    return sample_photos.zidane()


@pytest.fixture(scope="session")
def street() -> bytes:
    """1500 x 1500 pixels: nine times the bus with its people, small."""
    mosaic = Image.new("RGB", (1500, 1500), "gray")
    with Image.open(io.BytesIO(sample_photos.bus())) as photo:
        small = photo.resize((330, 440))
    for place in range(9):
        mosaic.paste(small, (place % 3 * 500 + 85, place // 3 * 500 + 30))
    file = io.BytesIO()
    mosaic.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with running(config(free_port())) as service:
        yield service


@pytest.fixture(scope="session")
def server(service: Service) -> str:
    return service.url


SPANS: list[tuple[str, str, dict[str, str]]] = []  # of `graph`: trace, name, attributes


class Collector(http.server.BaseHTTPRequestHandler):
    """What receives OTLP over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {a.key: a.value.string_value for a in span.attributes}
                    SPANS.append((span.trace_id.hex(), span.name, attributes))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def graph_config() -> dict[str, Any]:
    """Each stage in a replica of its own, batches of up to 8; every request is traced and logged in detail.

    With the gate of a cluster, on this one node.
    """
    content = apart(config(free_port()))
    (gate,) = yaml.safe_load((ROOT / "kuberay" / "base" / "serve.yaml").read_text())["applications"]
    gate["args"] = {"port": content["http_options"]["port"], "healthy_s": 3}
    gate["deployments"][0]["ray_actor_options"].pop("label_selector")
    content["applications"].append(gate)
    content["tracing_config"] = {
        "enabled": True, "exporter_import_path": "serve_app.tracing:exporter", "sampling_ratio": 1.0,
    }  # fmt: skip
    content["applications"][0]["args"]["log_details"] = 1.0
    return content


@pytest.fixture(scope="session")
def graph(graph_config: dict[str, Any]) -> Iterator[Service]:
    """The same service as it runs on a cluster; `service` has all stages in one process, as on a laptop."""
    with http_server(Collector) as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with running(graph_config, env=env) as service:
            yield service


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as opened:
        yield opened


# A replica that cannot start is tried three times; the first try already says why.
ONE_TRY = {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}


@contextmanager
def stops_completely(content: dict[str, Any], stop: signal.Signals) -> Iterator[Service]:
    """A service that `stop` must end with all its processes, its files and its port."""
    with running(content, stop=stop) as service:
        family, folder = psutil.Process(service.pid).children(recursive=True), ray_files(service)
        assert any("Ingress" in command(p) for p in family)
        assert folder.exists()
        yield service
        family += psutil.Process(service.pid).children(recursive=True)
    assert any("Stopping ..." in line for line in service.lines)
    psutil.wait_procs(family, timeout=10)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not folder.exists()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{service.url}/livez")


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


def eventually(found: Callable[[], Any], seconds: float = 300) -> Any:
    """What `found` returns once it is true. The time is for a machine so busy that 120 s were too few."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


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
