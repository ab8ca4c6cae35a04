"""`python -m serve_app deploy FILE`: changes a service that runs on this machine, without losing what protects it.

FILE + the service's SERVE_CONFIG_DIFFERENCE ──► checked as `serve` does ──► the difference from what runs, printed
    ──► refused if it lowers protection ──► Serve's REST API ──► waits until it runs, or says why it does not
"""

from __future__ import annotations

import difflib
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from ray.serve.schema import ServeApplicationSchema

from serve_app.errors import CommandFailed
from serve_app.ops import preflight, protection, serve_config, service_folder
from serve_app.ops.preflight import Checked
from serve_app.ops.protection import Applications
from serve_app.ops.service_folder import API, RunningService

TIMEOUT_S = 300.0  # as for a start
LOOKS = 5  # with n replicas that answer in turn, up to n of them are asked
CHANGEABLE = {"applications", "logging_config", "target_capacity"}  # Serve ignores a change of anything else


def deploy(path: Path, address: str | None, lower_protection: bool) -> None:
    """Deploys the configuration to the service at `address`, else to the one whose address it names.

    Returns once it serves. Raises CommandFailed; until then, the service goes on with what it serves.
    """
    service = choose(path, address)
    before = yaml.safe_load(service.config.read_text())
    difference = yaml.safe_load(service.difference) or {}
    if address:  # then the file may name another
        difference = serve_config.merged(difference, {"http_options": before.get("http_options")})
    checked = preflight.check(path, yaml.safe_dump(difference) if difference else "")
    for key in sorted(before.keys() | checked.content.keys()):
        if key not in CHANGEABLE and before.get(key) != checked.content.get(key):
            raise CommandFailed(f"{key} cannot change while {service.url} runs: restart it with {path}")
    try:
        with httpx.Client(
            base_url=service.dashboard, headers=service.authorization, timeout=60, trust_env=False
        ) as ray:
            apply(ray, service, path, checked, lower_protection)
    except httpx.HTTPError as error:
        raise CommandFailed(f"{service.url} does not answer: {error!r}") from error
    except KeyboardInterrupt as error:
        raise CommandFailed("stopped waiting; what was sent to the service is not taken back") from error


def choose(path: Path, address: str | None) -> RunningService:
    """The service that is meant. Raises CommandFailed."""
    services = service_folder.running()
    if not services:
        raise CommandFailed("no service of yours runs on this machine: start one with `make serve`")
    if address:
        meant = [service for service in services if service.is_at(address)]
    else:
        meant = [service for service in services if place(path, service.difference) == place(service.config)]
    if len(meant) == 1:
        return meant[0]
    fits = f"{address or path} is the address of {'several' if meant else 'none'} of the running services"
    raise CommandFailed(f"{fits}: say --address with one of {', '.join(service.url for service in services)}")


def place(path: Path, difference: str = "") -> tuple[Any, Any]:
    """Host and port in a configuration that need not be valid. Raises CommandFailed."""
    with preflight.reported(path, difference):
        content = serve_config.merged(yaml.safe_load(path.read_bytes()), yaml.safe_load(difference) or {})
        http = content.get("http_options") if isinstance(content, dict) else None
        return (http.get("host"), http.get("port")) if isinstance(http, dict) else (None, None)


def apply(ray: httpx.Client, service: RunningService, path: Path, checked: Checked, lower_protection: bool) -> None:
    """Prints what changes, deploys it, and waits for it. Raises CommandFailed or httpx.HTTPError."""
    running, wanted = served(ray, service), applications(checked.content)
    change = difference(text(running), text(wanted), service.url, path)
    print(change or f"{service.url} has this configuration already", flush=True)
    if (lowered := protection.lowered(running, wanted)) and not lower_protection:
        fix = "to deploy it nevertheless, add --lower-protection"
        raise CommandFailed(f"{path} lowers the protection of {service.url}: {'; '.join(lowered)}; {fix}")
    sent = time.time()
    answer = ray.put(API, json=checked.content)
    if answer.is_error:
        raise CommandFailed(f"Serve refuses it: {' '.join(answer.text.split())}")
    wait(ray, wanted, sent)
    service.config.write_text(yaml.safe_dump(checked.content))
    wait_for_weights(service.url + checked.path)
    after = model(service.url + checked.path)
    refused = after["refused"] if after else []
    if late := [one for one in refused if datetime.fromisoformat(one["at"]).timestamp() >= int(sent)]:
        last = late[-1]
        raise CommandFailed(f"the live weights stay, {last['uri']}: {last['reason']}: {last['detail']}")
    ask = f"; {service.url}{checked.path}v1/models, with a key, shows which weights are live" if after is None else ""
    print(f"{service.url} serves it{ask}.")


def status(ray: httpx.Client) -> dict[str, Any]:
    """The applications as Serve reports them, by name. Raises httpx.HTTPError."""
    found: dict[str, Any] = ray.get(API).raise_for_status().json()["applications"]
    return found


def served(ray: httpx.Client, service: RunningService) -> Applications:
    """The applications that run. Serve reports those that were asked for last, which may have failed."""
    last = applications(yaml.safe_load(service.config.read_text()))
    asked = {
        name: one["deployed_app_config"] if one["status"] == "RUNNING" else None for name, one in status(ray).items()
    }
    return {name: found for name, one in asked.items() if (found := one or last.get(name))}


def applications(content: dict[str, Any]) -> Applications:
    """The applications of a configuration as Serve stores them, by name."""
    logging = {"logging_config": content["logging_config"]} if "logging_config" in content else {}
    stored = (ServeApplicationSchema.model_validate(logging | one) for one in content["applications"])
    return {one.name: one.model_dump(mode="json", exclude_unset=True) for one in stored}


def text(found: Applications) -> str:
    """Applications as YAML."""
    return yaml.safe_dump({"applications": list(found.values())}, allow_unicode=True)


def difference(now: str, then: str, url: str, path: Path) -> str:
    """A unified diff; empty if nothing changes."""
    lines = difflib.unified_diff(now.splitlines(), then.splitlines(), f"{url} runs", str(path), lineterm="")
    return "\n".join(lines)


def wait(ray: httpx.Client, wanted: Applications, sent: float) -> None:
    """Returns when all applications run as they were sent at `sent` (seconds of Unix time).

    Raises CommandFailed when one fails, or after TIMEOUT_S, and httpx.HTTPError.
    """
    end, late = time.monotonic() + TIMEOUT_S, list(wanted)
    while late:
        if time.monotonic() > end:
            raise CommandFailed(f"{', '.join(late)} not deployed after {TIMEOUT_S:g} s; Serve goes on trying")
        time.sleep(0.5)
        found = status(ray)
        late = [name for name in wanted if found.get(name, {}).get("last_deployed_time_s", 0) < sent]
        for name in wanted.keys() - set(late):
            one = found[name]
            if one["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                stages = [deployment["message"] for deployment in one["deployments"].values()]
                raise CommandFailed(preflight.failure(name, [one["message"], *stages]))
            if one["status"] != "RUNNING":
                late.append(name)


def wait_for_weights(application: str) -> None:
    """Returns once LOOKS answers in a row, each of any replica, say that no weights are loading.

    Serve does not wait for them. Raises CommandFailed after TIMEOUT_S, and httpx.HTTPError.
    """
    end, looks = time.monotonic() + TIMEOUT_S, 0
    while looks < LOOKS:
        if time.monotonic() > end:
            raise CommandFailed(f"the weights are not loaded after {TIMEOUT_S:g} s; the service goes on trying")
        answer = httpx.get(f"{application}readyz", timeout=60, trust_env=False)
        looks = looks + 1 if answer.is_success and not answer.json()["loading"] else 0
        time.sleep(0.2)


def model(application: str) -> dict[str, Any] | None:
    """The model as `/v1/models` reports it; None where only a key may ask. Raises httpx.HTTPError."""
    answer = httpx.get(f"{application}v1/models", timeout=60, trust_env=False)
    return dict(answer.json()["models"][0]) if answer.is_success else None
