"""Where a service keeps its files, and how other commands find it."""

# ruff: noqa: S108 - temporary folders are the subject
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from serve_app.errors import CommandFailed
from serve_app.ops import service_folder
from serve_app.ops.service_folder import RunningService, announced, bases, make, read, running, suits


@pytest.mark.parametrize(
    ("base", "suitable"),
    [
        ("/tmp", True),
        ("/var/tmp", True),
        ("/tmp/user/1000", True),
        ("/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T", False),  # macOS
        ("/tmp/my files", False),
        ("/tmp/Käse", False),
        ("tmp", False),
        ("/" + "x" * 200, False),
    ],
)
def test_a_base_suits_sockets_and_haproxy(base: str, suitable: bool) -> None:
    assert suits(Path(base)) is suitable


@pytest.mark.parametrize("folder", ["", "none", "with space", "x" * 120])
def test_an_unsuitable_tmpdir_is_no_obstacle(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmpdir = tmp_path / folder if folder else Path()
    if folder not in ("", "none"):
        tmpdir.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmpdir) if folder else "")
    made = make()
    assert made.parent in (Path("/tmp"), Path("/var/tmp"))
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert len((made / service_folder.TOKEN).read_text()) == 64
    (made / service_folder.TOKEN).unlink()
    made.rmdir()


def test_no_base_at_all_is_said_with_the_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_folder, "bases", lambda: [tmp_path, Path("/proc")])
    with pytest.raises(CommandFailed, match=r"set TMPDIR to one: .* is too long .*; /proc: ") as failed:
        make()
    assert "\n" not in str(failed.value)


def test_a_service_is_found_while_it_runs_and_only_by_its_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service_folder, "bases", lambda: [tmp_path])
    folder = tmp_path / "ray-1"
    folder.mkdir()
    service = RunningService("http://127.0.0.1:8000", "http://127.0.0.1:8265", "token", "", str(folder))
    assert running() == []
    with announced(service):
        assert running() == [service]
        with monkeypatch.context() as other:
            other.setattr(os, "getuid", lambda: 12345)
            assert running() == []
        (folder / service_folder.RECORD).write_text("{}")
        assert running() == [], "of another version"
    (folder / service_folder.RECORD).write_text("{")
    assert read(folder) is None, "its service was killed"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "127.0.0.1:8000", "8000"])
def test_an_address_may_be_short(address: str) -> None:
    assert RunningService("http://127.0.0.1:8000", "", "", "", "").is_at(address)
    assert not RunningService("http://127.0.0.1:18000", "", "", "", "").is_at(address)


def test_tmpdir_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/mine")
    assert bases() == [Path("/mine"), Path("/tmp"), Path("/var/tmp")]
    monkeypatch.delenv("TMPDIR")
    assert bases() == [Path("/tmp"), Path("/var/tmp")]
