"""What protects a running service, and what of it a new configuration would lower.

Counted is who may call, from where, and how much of the machine one caller may take, what a log tells of callers'
photos, and which code answers. Not counted is what serves callers better or worse: weights, engine, replicas, queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import gt, lt
from typing import Any

from pydantic import ValidationError

from serve_app.settings import AppSettings

Applications = dict[str, dict[str, Any]]  # each as in `applications:`, by its name


def dropped(now: str | None, then: str | None) -> bool:
    """Whether a file of keys is no longer asked for. Another one is the operator's choice."""
    return bool(now) and not then


def widened(now: tuple[str, ...], then: tuple[str, ...]) -> bool:
    """Whether a list allows what it did not allow."""
    return "*" not in now and not set(then) <= set(now)


LOWERS: dict[str, Callable[[Any, Any], bool]] = {  # whether a setting's new value protects less than the present one
    "api_keys_file": dropped,
    "cors_origins": widened,
    "image_url_hosts": widened,
    "max_requests_per_key": lt,
    "max_body_bytes": lt,
    "max_images": lt,
    "max_image_pixels": lt,
    "max_image_frames": lt,
    "max_tiles": lt,
    "max_waiting_images": lt,
    "decode_timeout_s": lt,
    "timeout_s": lt,
    "upload_grace_s": lt,
    "min_upload_bytes_per_s": gt,
    "log_details": lt,
}
CODE = ("import_path", "runtime_env")


def lowered(running: Applications, wanted: Applications) -> list[str]:
    """What the wanted applications would protect less than the running ones, one sentence each; empty if nothing.

    An application with a new name is compared with all that run, because it is reached beside or instead of them.
    """
    found = [f"the application {name} is removed" for name in running if name not in wanted]
    for name, then in wanted.items():
        for now in [running[name]] if name in running else running.values():
            found += weaker(now, then)
    return found


def weaker(now: dict[str, Any], then: dict[str, Any]) -> Iterator[str]:
    """What one application protects less than another."""
    yield from (f"{key} names other code" for key in CODE if now.get(key) != then.get(key))
    try:
        old, new = (AppSettings.model_validate(one.get("args") or {}) for one in (now, then))
    except ValidationError:  # not of ours: nothing is known of its arguments
        return
    for name, lowers in LOWERS.items():
        before, after = getattr(old, name), getattr(new, name)
        if lowers(before, after):
            yield f"{name}: {before} becomes {after}"
