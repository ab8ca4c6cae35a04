"""API keys: the file, and a service that asks for them."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.raw_http import at_once
from loadtests.service import Service, config, free_port
from serve_app.__main__ import main
from serve_app.errors import Forbidden, TooManyRequests, Unauthorized
from serve_app.http.auth import Keys, digest, read
from tests.conftest import stops_completely
from tests.http.test_errors import check

ALICE, BOB = "alice-secret", "bob-secret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# comment\n\nalice {digest(ALICE)}\n")
    return path


def test_owners_are_known_by_their_key(file: Path) -> None:
    keys = Keys(file, 1)
    assert keys.identify(ALICE) == "alice"
    for missing in (None, ""):
        with pytest.raises(Unauthorized):
            keys.identify(missing)
    for wrong in (BOB, digest(ALICE), "alice", "ä"):
        with pytest.raises(Forbidden):
            keys.identify(wrong)


def test_a_changed_file_is_read_without_a_restart(file: Path) -> None:
    keys = Keys(file, 1)
    new = file.with_suffix(".new")
    new.write_text(f"bob {digest(BOB)}\n")
    new.replace(file)
    assert keys.identify(BOB) == "bob"
    with pytest.raises(Forbidden):
        keys.identify(ALICE)


@pytest.mark.parametrize("content", ["", "alice", "alice 123", f"alice {ALICE}", "a {0}\na {0}".format("0" * 64), None])
def test_a_broken_file_leaves_the_old_keys_in_force(
    file: Path, content: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(file, 1)
    new = file.with_suffix(".new")
    if content is None:
        file.unlink()
    else:
        new.write_text(content)
        new.replace(file)
        with pytest.raises(ValueError, match=r"key|line"):
            read(file)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    assert keys.identify(ALICE) == "alice"
    assert "previous ones stay active" in caplog.text
    assert ALICE not in caplog.text


def test_slots_are_per_owner_and_come_back(file: Path) -> None:
    keys = Keys(file, 1)
    with keys.slot("alice"), keys.slot("bob"), pytest.raises(TooManyRequests), keys.slot("alice"):
        pass
    with keys.slot("alice"):
        pass


def test_the_command_makes_a_key_that_works(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "carol"]) == 0
    out = capsys.readouterr().out
    found = re.fullmatch(r"key, for carol only:  (\S+)\nline for the keys file:  (carol \S+)\n", out)
    assert found
    file.write_text(found[2])
    assert Keys(file, 1).identify(found[1]) == "carol"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("secret") / "keys"
    path.write_text(f"alice {digest(ALICE)}\n")
    content = config(
        free_port(),
        api_keys_file=str(path),
        max_requests_per_key=2,
        cors_origins=["https://our.test"],
        image_url_hosts=["localhost"],
        timeout_s=5,
    )
    with stops_completely(content, signal.SIGINT) as service:
        yield service


def test_only_holders_of_a_key_pass(guarded: Service, bus: bytes, tmp_path: Path) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as http:
        for path in ("/v1/predict", "/invocations", "/v2/models/yolov8n/infer"):
            nobody = http.post(path, content=bus)
            check(nobody.status_code, nobody.headers["content-type"], nobody.json(), 401, "unauthorized")
            assert nobody.headers["www-authenticate"] == "Bearer"
            other = http.post(path, content=bus, headers={"X-API-Key": BOB})
            check(other.status_code, other.headers["content-type"], other.json(), 403, "forbidden")
        assert http.get("/v1/models").status_code == 401
        for headers in ({"X-API-Key": ALICE}, {"Authorization": f"Bearer {ALICE}"}):
            assert http.post("/v1/predict", files={"file": bus}, headers=headers).status_code == 200
        for open_to_all in ("/", "/docs", "/livez", "/readyz", "/ping", "/v2/health/ready"):
            assert http.get(open_to_all).status_code == 200
    photo = tmp_path / "street.jpg"
    photo.write_bytes(bus)
    assert main(["predict", str(photo), "--url", guarded.url, "--key", ALICE]) == 0
    assert ALICE not in "".join(guarded.lines)
    assert BOB not in "".join(guarded.lines)


def test_a_key_has_a_bounded_number_of_requests_at_once(guarded: Service, bus: bytes) -> None:
    answers = at_once(guarded.url, bus, 16, {"X-API-Key": ALICE})
    refused = [a for a in answers if a.status != 200]
    assert refused
    assert len(refused) < len(answers)
    for answer in refused:
        check(answer.status, answer.headers["content-type"], json.loads(answer.body), 429, "too_many_requests")
        assert answer.headers["retry-after"] == "1"
    assert at_once(guarded.url, bus, 1, {"X-API-Key": ALICE})[0].status == 200, "places come back"


def test_cors_is_for_configured_origins_only(guarded: Service) -> None:
    def preflight(origin: str) -> httpx.Response:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return httpx.options(f"{guarded.url}/v1/predict", headers=headers)

    assert preflight("https://our.test").headers["access-control-allow-origin"] == "https://our.test"
    assert "access-control-allow-origin" not in preflight("https://evil.test").headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/readyz", 200), ("GET", "/v1/models", 401), ("GET", "/nowhere", 404), ("PUT", "/v1/predict", 405)],
)
def test_a_page_of_a_configured_origin_may_read_every_answer(
    guarded: Service, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, f"{guarded.url}{path}", headers={"Origin": "https://our.test"})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "https://our.test"
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert all(name in exposed for name in ("x-request-id", "x-model-name", "server-timing", "retry-after"))


def test_a_listed_host_with_a_private_address_is_refused(guarded: Service) -> None:
    body = {"source": "https://localhost/latest/meta-data"}
    answer = httpx.post(f"{guarded.url}/v1/predict", json=body, headers={"X-API-Key": ALICE})
    check(answer.status_code, answer.headers["content-type"], answer.json(), 400, "malformed_request")
    assert "not a public host" in answer.json()["detail"]


def test_a_client_cannot_lift_the_timeout_nor_shorten_it(guarded: Service, bus: bytes) -> None:
    """0.001 would make Serve answer 408 at once, 0 would let a request run for ever."""
    for seconds in ("0", "0.001"):
        headers = {"X-API-Key": ALICE, "X-Request-Timeout-Seconds": seconds, "X-Request-Disconnect-Disabled": "?1"}
        answer = httpx.post(f"{guarded.url}/v1/predict", files={"file": bus}, headers=headers, timeout=30)
        assert answer.status_code == 200
