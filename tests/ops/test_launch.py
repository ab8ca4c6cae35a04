"""`python -m serve_app serve` and `predict`, as a person would run them."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from PIL import Image

from loadtests.service import NotStarted, command, config, free_port, ray_files, running
from serve_app.__main__ import main
from serve_app.vision import sample_photos
from serve_app.weights import golden_set, identity
from tests.conftest import ONE_TRY, ROOT


def serve(content: dict, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "serve_app", "serve", "--config", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_a_second_service_on_the_port_says_so(server: str, tmp_path: Path) -> None:
    ended = serve(config(httpx.URL(server).port or 0), tmp_path)
    assert ended.returncode == 1
    assert "is in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert httpx.get(f"{server}/readyz").status_code == 200, "the first one goes on"


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str | None], str]:
    """What `serve` says of a configuration that it refuses, in this process: importing Ray takes 3 s."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # else services started later would share this one's ports

    def said(text: str | None) -> str:
        path = tmp_path / "config.yaml"
        if text is not None:
            path.write_text(text)
        assert main(["serve", "--config", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return said


def test_a_difference_that_serve_does_not_know_is_said_at_once(refused: Callable[[str], str]) -> None:
    os.environ["SERVE_CONFIG_DIFFERENCE"] = "{http_options: {prot: 8080}}"
    said = refused(yaml.safe_dump(config(free_port())))
    assert "with SERVE_CONFIG_DIFFERENCE: unknown keys that Serve would drop: .http_options.prot" in said


def test_it_starts_wherever_it_is(tmp_path: Path, bus: bytes) -> None:
    """A path with spaces and umlauts that cannot be written, a long TMPDIR, no HOME, one core, and no assertions."""
    root, temp = tmp_path / "Übung mit Leerzeichen", tmp_path / ("deeper" * 15)  # a socket's path has at most 107 bytes
    temp.mkdir()
    for part in ("serve_app", "models/default.pt", "models/default.json", "serve_config.yaml"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, root / part)
    files = [root, *root.rglob("*")]
    for file in files:
        file.chmod(file.stat().st_mode & ~0o222)
    content = config(free_port())
    content["http_options"]["host"], content["applications"][0]["route_prefix"] = "0.0.0.0", "/photos"
    env = {"TMPDIR": str(temp), "HOME": "/proc/none", "PYTHONPATH": str(root), "PYTHONOPTIMIZE": "1", "LC_ALL": "C"}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with running(content, env=env, root=root) as service:
            url = service.url.replace("0.0.0.0", "127.0.0.1")
            assert any(line.startswith(f"Ready: {url}/photos (") for line in service.lines)
            assert any("Leerzeichen/models/default.pt" in line for line in service.lines), "this checkout serves"
            answer = httpx.post(f"{url}/photos/v1/predict", files={"file": bus}, timeout=60, trust_env=False)
            assert answer.json()["metadata"]["model"]["bundled"]
    finally:
        os.sched_setaffinity(0, cores)
        for file in files:
            file.chmod(file.stat().st_mode | 0o200)
    assert not ray_files(service).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy is for Linux only")
def test_too_few_open_files_are_said_at_once() -> None:
    typed = f"ulimit -n 1024; exec {sys.executable} -m serve_app serve"
    ended = subprocess.run(["bash", "-c", typed], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 1
    assert "the limit on open files is 1024, but HAProxy needs" in ended.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param({"weights": "models/none.pt"}, "weights pull yolov8n", id="no weights"),
        pytest.param({"image_size": 641}, "multiple of 32", id="a bad setting"),
        pytest.param({"image_siz": 640}, "image_siz", id="an unknown setting"),
        pytest.param({"api_keys_file": "nokeys.txt"}, "nokeys.txt", id="no keys file"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(args: dict, message: str, refused: Callable[[str], str]) -> None:
    assert message in refused(yaml.safe_dump(config(free_port(), **args)))


@pytest.mark.parametrize("prefix", [None, "photos", "/photos/", "/my photos", "//"])
def test_a_route_prefix_that_is_no_path(prefix: str | None, refused: Callable[[str], str]) -> None:
    content = config(free_port())
    content["applications"][0]["route_prefix"] = prefix
    assert f"route_prefix {prefix!r} is not a path" in refused(yaml.safe_dump(content))


def test_a_user_config_that_the_detector_would_reject(refused: Callable[[str], str]) -> None:
    content = config(free_port())
    content["applications"][0]["deployments"][0]["user_config"] = {"max_batch": 4}
    assert "max_batch: Extra inputs are not permitted" in refused(yaml.safe_dump(content))


def test_a_folder_is_no_configuration(tmp_path: Path, refused: Callable[[str | None], str]) -> None:
    (tmp_path / "config.yaml").mkdir()
    assert "config.yaml: Is a directory" in refused(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "cannot read", id="no file"),
        pytest.param("", "applications: Field required", id="empty"),
        pytest.param("hello", "applications: Field required", id="a text"),
        pytest.param("[1]", "applications: Field required", id="a list"),
        pytest.param("\x00", "special characters are not allowed", id="no text"),
        pytest.param("a: [", "error: ", id="no YAML"),
        pytest.param("applications: []", "not a complete Serve configuration", id="no application"),
        pytest.param("applications: []\ntypo: 1", ".typo", id="a key that Serve would drop"),
    ],
)
def test_a_config_that_is_none(text: str | None, message: str, refused: Callable[[str | None], str]) -> None:
    assert message in refused(text)


def test_weights_that_fail_their_golden_set_fail_the_start(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end a service that started: tests/http/test_auth.py, tests/graph/test_autoscaling.py."""
    weights, manifest = tmp_path / "new.pt", identity.pin_file(str(identity.BUNDLED)).manifest
    shutil.copy(identity.BUNDLED, weights)
    assert manifest
    nowhere = golden_set.Expected(name="car", score=0.9, box=(0.0, 0.0, 9.0, 9.0))
    photo = golden_set.Photo(file="bus.jpg", jpeg=base64.b64encode(sample_photos.bus()), objects=(nowhere,))
    wrong = manifest.model_copy(update={"golden": golden_set.Golden(photos=(photo,))})
    weights.with_suffix(".json").write_text(wrong.model_dump_json())
    content = config(free_port(), weights=str(weights))
    with pytest.raises(NotStarted, match="golden set") as ended, running(content, env=ONE_TRY):
        pass
    assert "error: " in str(ended.value).rstrip().splitlines()[-1], "the reason is the last line"


def test_predict_prints_a_table_and_draws(
    server: str, bus: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, broken = tmp_path / "street.jpg", tmp_path / "broken.jpg"
    photo.write_bytes(bus)
    broken.write_bytes(bus[:2000])
    code = main(["predict", str(photo), str(broken), "--url", server, "--save", str(tmp_path / "out"), "--conf", "0.3"])
    out, err = capsys.readouterr()
    assert code == 1, "one of the two failed"
    assert "bus " in out
    assert out.count("person") >= 3
    assert "broken.jpg: corrupt_image" in err
    with Image.open(tmp_path / "out" / "street.jpg.boxes.jpg") as drawn, Image.open(photo) as original:
        assert drawn.size == original.size
        assert drawn.tobytes() != original.tobytes()


def test_predict_without_a_service_says_so(bus: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "street.jpg"
    photo.write_bytes(bus)
    assert main(["predict", str(photo), "--url", "http://127.0.0.1:1"]) == 1
    assert "street.jpg: " in capsys.readouterr().err


def test_it_ends_when_rays_node_dies() -> None:
    """So that whoever runs it starts it again. It used to wait for ever, and nothing answered."""
    with running(config(free_port())) as service:
        node = psutil.Process(service.pid)
        next(p for p in node.children(recursive=True) if "raylet/raylet" in command(p)).kill()
        assert node.wait(120) in (1, None)  # None: it is not a child of this process
        assert "error: Ray's node has died" in "".join(service.lines)
