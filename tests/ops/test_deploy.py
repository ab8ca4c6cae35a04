"""`python -m serve_app deploy`: two real services, one of which has its API keys from SERVE_CONFIG_DIFFERENCE."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.service import Service, config, detector, free_port, model, running, status
from serve_app.__main__ import main
from serve_app.http.auth import digest
from serve_app.ops import service_folder
from serve_app.weights.identity import BUNDLED

KEY = "alice-secret"
pytestmark = pytest.mark.usefixtures("service")  # one group, else two processes would each start `guarded`


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for keys, started from a file that asks for none."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice {digest(KEY)}\n")
    difference = {"applications": [{"name": "recognition", "args": {"api_keys_file": str(keys)}}]}
    with running(config(free_port()), env={"SERVE_CONFIG_DIFFERENCE": yaml.safe_dump(difference)}) as one:
        yield one


def changed(like: Service, weights: str | None = None, **args: Any) -> dict[str, Any]:
    """The file from which a service was started, with other live weights and other arguments."""
    content = config(httpx.URL(like.url).port or 0, **args)
    if weights:
        detector(content)["user_config"]["weights"] = weights
    return content


@pytest.fixture
def deploy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The exit code of the command, what it prints, and its error, which is at most one line."""

    def run(content: dict[str, Any], *options: str) -> tuple[int, str, str]:
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(content))
        code = main(["deploy", str(path), *options])
        out, err = capsys.readouterr()
        assert err.count("\n") == code == err.startswith("error: ")
        return code, out, err

    return run


def without_key(service: Service) -> int:
    return httpx.get(f"{service.url}/v1/models", timeout=60, trust_env=False).status_code


def live(service: Service) -> str:
    answer = httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": KEY}, timeout=60, trust_env=False)
    return str(answer.raise_for_status().json()["models"][0]["name"])


def test_a_swap_keeps_the_keys_and_the_other_service(
    guarded: Service, service: Service, deploy: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    shutil.copy(BUNDLED, tmp_path / "mine.pt")
    other = model(service)
    assert without_key(guarded) == HTTPStatus.UNAUTHORIZED
    code, out, _ = deploy(changed(guarded, str(tmp_path / "mine.pt")))
    assert code == 0
    assert [line for line in out.splitlines() if line[:2] in ("+ ", "- ")] == [f"+      weights: {tmp_path}/mine.pt"]
    assert without_key(guarded) == HTTPStatus.UNAUTHORIZED
    assert live(guarded) == "mine", "the command has waited for it"
    assert model(service) == other

    elsewhere = changed(guarded)
    elsewhere["http_options"]["port"] = 7999
    code, _, err = deploy(elsewhere)
    assert code == 1
    assert all(url in err for url in (guarded.url, service.url)), "neither is meant"
    assert deploy(elsewhere, "--address", guarded.url)[0] == 0
    assert live(guarded) != "mine"
    assert without_key(guarded) == HTTPStatus.UNAUTHORIZED
    assert model(service) == other


@pytest.mark.parametrize(
    "args",
    [{"max_images": 17}, {"decode_timeout_s": 60}, {"min_upload_bytes_per_s": 1}, {"cors_origins": ["*"]}],
    ids=lambda args: next(iter(args)),
)
def test_less_protection_is_refused(
    guarded: Service, deploy: Callable[..., tuple[int, str, str]], args: dict[str, Any]
) -> None:
    before = status(guarded)["last_deployed_time_s"]
    code, out, err = deploy(changed(guarded, **args))
    (setting,) = args
    assert code == 1
    assert f"+    {setting}:" in out, "the difference comes first"
    assert f"lowers the protection of {guarded.url}: {setting}: " in err
    assert status(guarded)["last_deployed_time_s"] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"typo": 1}, "unknown keys that Serve would drop: .typo", id="a key that Serve would drop"),
        pytest.param({"proxy_location": "HeadOnly"}, "proxy_location cannot change", id="what Serve would ignore"),
        pytest.param({"applications": [{"name": "recognition"}]}, "import_path: Field required", id="no application"),
    ],
)
def test_what_cannot_be_deployed_is_said_at_once(
    guarded: Service, deploy: Callable[..., tuple[int, str, str]], change: dict[str, Any], message: str
) -> None:
    code, out, err = deploy(changed(guarded) | change)
    assert (code, out) == (1, "")
    assert message in err


def test_a_failed_deployment_says_why_and_can_be_taken_back(
    service: Service, deploy: Callable[..., tuple[int, str, str]]
) -> None:
    before = model(service)
    code, _, err = deploy(changed(service, "models/none.pt"))
    assert code == 1
    assert "the live weights stay, models/none.pt: missing: " in err
    broken = changed(service)
    broken["applications"][0]["import_path"] = "nowhere:build"
    code, _, err = deploy(broken, "--lower-protection")
    assert code == 1
    assert "the application recognition failed: " in err
    assert "No module named 'nowhere'" in err
    assert model(service)["uri"] == before["uri"], "the previous version goes on"
    assert deploy(changed(service))[0] == 0, "to go back lowers nothing"


def test_without_a_service_it_says_so(
    deploy: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_folder, "bases", list)
    assert "no service of yours runs on this machine" in deploy(config(8000))[2]
