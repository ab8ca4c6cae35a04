from __future__ import annotations

import hashlib
import http.server
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.__main__ import main
from serve_app.errors import WeightsError
from serve_app.weights import identity, ultralytics_weights
from tests.conftest import http_server

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as `/yolov8s.pt`, ranges too; remembers the ranges asked for."""

    ranges: list[str | None] = []  # noqa: RUF012 - reset by the fixture

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.ranges.append(asked)
        if self.path != "/yolov8s.pt":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    Mirror.ranges = []
    with http_server(Mirror) as url:
        yield url


def test_pull_verifies_and_names_the_file_last(mirror: str, tmp_path: Path) -> None:
    path = ultralytics_weights.pull("yolov8s", SHA256, mirror, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["yolov8s.pt"]


@pytest.mark.parametrize("have", [1, 500_000, len(CONTENT)], ids=["one byte", "half", "all of it"])
def test_pull_goes_on_where_it_stopped(mirror: str, tmp_path: Path, have: int) -> None:
    (tmp_path / "yolov8s.pt.part").write_bytes(CONTENT[:have])
    assert ultralytics_weights.pull("yolov8s", SHA256, mirror, tmp_path).read_bytes() == CONTENT
    assert Mirror.ranges == [f"bytes={have}-"]


def test_pull_twice_asks_once(mirror: str, tmp_path: Path) -> None:
    for _ in range(2):
        ultralytics_weights.pull("yolov8s", SHA256, mirror, tmp_path)
    assert Mirror.ranges == [None]


def test_a_wrong_hash_leaves_nothing(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="was deleted"):
        ultralytics_weights.pull("yolov8s", "0" * 64, mirror, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_hash_is_not_overwritten(mirror: str, tmp_path: Path) -> None:
    (tmp_path / "yolov8s.pt").write_bytes(b"mine")
    with pytest.raises(WeightsError, match="another sha256"):
        ultralytics_weights.pull("yolov8s", SHA256, mirror, tmp_path)
    assert (tmp_path / "yolov8s.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "sha256", "source", "message"),
    [
        pytest.param("yolov8s", None, None, "no sha256 is pinned", id="no hash that we can cite"),
        pytest.param("yolov8m", SHA256, None, "404", id="not there"),
        pytest.param("yolov8s", SHA256, "http://127.0.0.1:1", "cannot download", id="nobody listens"),
    ],
)
def test_what_cannot_be_pulled_says_why(
    mirror: str, tmp_path: Path, name: str, sha256: str | None, source: str | None, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        ultralytics_weights.pull(name, sha256, source or mirror, tmp_path)


def test_what_can_be_pulled_is_what_ultralytics_publishes() -> None:
    from ultralytics.utils import downloads

    assert {f"{name}.pt" for name in ultralytics_weights.PULLABLE} <= downloads.GITHUB_ASSETS_NAMES
    release = inspect.signature(downloads.attempt_download_asset).parameters["release"].default
    assert ultralytics_weights.OTHERS.endswith(f"/{downloads.GITHUB_ASSETS_REPO}/releases/download/{release}")


def test_the_command_reports_an_error_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "pull", "yolov8x"]) == 1
    assert capsys.readouterr().err.startswith("error: no sha256 is pinned for yolov8x")


def test_auto_prefers_coco_then_the_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preferred, bundled = tmp_path / "yolov8n.pt", tmp_path / "default.pt"
    monkeypatch.setattr(identity, "PREFERRED", preferred)
    monkeypatch.setattr(identity, "BUNDLED", bundled)
    with pytest.raises(WeightsError, match="weights pull yolov8n"):
        identity.pin_file("auto")
    bundled.touch()
    assert identity.pin_file("auto").uri == str(bundled)
    preferred.touch()
    assert identity.pin_file("auto").uri == str(preferred)


def test_a_relative_file_lies_below_the_project(tmp_path: Path) -> None:
    (tmp_path / "mine.pt").touch()
    assert identity.pin_file(str(tmp_path / "mine.pt")).uri == str(tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match=r"models/none\.pt"):
        identity.pin_file("models/none.pt")
