"""What counts as lower protection."""

from __future__ import annotations

import re
from typing import Any

import pytest

from serve_app.ops.protection import CODE, LOWERS, lowered
from serve_app.settings import ROOT, AppSettings

# Settings that serve callers better or worse, but keep nobody out.
NEUTRAL = {
    "weights", "s3_endpoint_url", "weights_cache", "image_size", "placement", "engine", "precision", "cpu_threads",
    "decode_threads",
}  # fmt: skip


def test_of_every_setting_it_is_decided_whether_it_protects() -> None:
    assert set(LOWERS) | NEUTRAL == set(AppSettings.model_fields)
    assert not set(LOWERS) & NEUTRAL


def app(**args: Any) -> dict[str, Any]:
    return {"name": "recognition", "import_path": "serve_app.app:build", "args": args}


@pytest.mark.parametrize(
    ("now", "then", "setting"),
    [
        pytest.param({"api_keys_file": "keys"}, {}, "api_keys_file", id="no keys any more"),
        pytest.param({"api_keys_file": "keys"}, {"api_keys_file": None}, "api_keys_file", id="keys are none"),
        pytest.param({"api_keys_file": "keys"}, {"api_keys_file": ""}, "api_keys_file", id="keys are an empty text"),
        pytest.param({}, {"cors_origins": ["*"]}, "cors_origins", id="all origins instead of none"),
        pytest.param(
            {"cors_origins": ["https://a"]}, {"cors_origins": ["https://b"]}, "cors_origins", id="another origin"
        ),
        pytest.param({}, {"image_url_hosts": ["a.example"]}, "image_url_hosts", id="URLs of a host"),
        pytest.param({"max_requests_per_key": 4}, {}, "max_requests_per_key", id="the default is more"),
        pytest.param({}, {"max_body_bytes": 20_000_001}, "max_body_bytes", id="a byte more"),
        pytest.param({}, {"max_images": 17}, "max_images", id="an image more"),
        pytest.param({}, {"max_image_pixels": 60_000_000}, "max_image_pixels", id="more pixels"),
        pytest.param({}, {"max_image_frames": 1001}, "max_image_frames", id="a frame more"),
        pytest.param({}, {"max_tiles": 257}, "max_tiles", id="a tile more"),
        pytest.param({}, {"max_waiting_images": 1_000_000}, "max_waiting_images", id="a queue without an end"),
        pytest.param({}, {"decode_timeout_s": 600}, "decode_timeout_s", id="longer decoding"),
        pytest.param({"timeout_s": 10}, {"timeout_s": "30"}, "timeout_s", id="longer requests, as a text"),
        pytest.param({}, {"upload_grace_s": 6}, "upload_grace_s", id="a longer grace"),
        pytest.param({}, {"min_upload_bytes_per_s": 1}, "min_upload_bytes_per_s", id="slower uploads"),
        pytest.param({}, {"log_details": 1}, "log_details", id="what is found goes to the log"),
    ],
)
def test_a_setting_that_protects_less_is_named_and_one_that_protects_more_is_not(
    now: Any, then: Any, setting: str
) -> None:
    (found,) = lowered({"recognition": app(**now)}, {"recognition": app(**then)})
    assert found.startswith(f"{setting}: ")
    if setting != "cors_origins" or now != {"cors_origins": ["https://a"]}:
        assert lowered({"recognition": app(**then)}, {"recognition": app(**now)}) == []


@pytest.mark.parametrize(
    ("now", "then"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"api_keys_file": "keys"}, {"api_keys_file": "others"}, id="other keys"),
        pytest.param({"cors_origins": ["*"]}, {"cors_origins": ["https://a"]}, id="one origin instead of all"),
        pytest.param({"max_images": 16}, {}, id="the default in words"),
        pytest.param(
            {}, {"weights": "s3://bucket/key.pt", "precision": "int8", "decode_threads": 9}, id="how it serves"
        ),
    ],
)
def test_what_protects_as_much_is_not_named(now: Any, then: Any) -> None:
    assert lowered({"recognition": app(**now)}, {"recognition": app(**then)}) == []


@pytest.mark.parametrize(
    ("then", "named"),
    [
        pytest.param([], ["the application recognition is removed"], id="it is removed"),
        pytest.param(
            [app() | {"name": "open"}],
            ["the application recognition is removed", "api_keys_file: keys becomes None"],
            id="it has a new name and no keys",
        ),
        pytest.param(
            [app(api_keys_file="keys"), app() | {"name": "open"}],
            ["api_keys_file: keys becomes None"],
            id="a second one",
        ),
        pytest.param([app(any=1) | {"import_path": "my:app"}], ["import_path names other code"], id="other code"),
        pytest.param(
            [app(api_keys_file="keys") | {"runtime_env": {"working_dir": "s3://b/c.zip"}}],
            ["runtime_env names other code"],
            id="code from elsewhere",
        ),
    ],
)
def test_another_application_is_no_way_around(then: list[dict[str, Any]], named: list[str]) -> None:
    assert lowered({"recognition": app(api_keys_file="keys")}, {one["name"]: one for one in then}) == named


def test_the_guide_names_all_that_protects() -> None:
    text = (ROOT / "serve_app" / "README.md").read_text()
    rows = text.partition("| what protects |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == {*LOWERS, *CODE}
