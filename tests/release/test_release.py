"""A release: its notes, its version, its commit and its tag, in a repository of the test's own."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, script

SCRIPT = ROOT / ".github" / "release.py"
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A thing.

## [0.1.0] - 2026-01-01

- The first.
"""


@pytest.fixture
def release() -> Any:
    return script(SCRIPT)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.com")
    (tmp_path / "serve_app").mkdir()
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "serve_app" / "__init__.py").write_text('"""It."""\n\n__version__ = "0.1.0"\n')
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    return tmp_path


def git(folder: Path, *typed: str) -> str:
    return subprocess.run(["git", *typed], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_dry_run_shows_all_and_changes_nothing(
    repository: Path, release: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    release.main(repository, "0.2.0", commit=False)
    shown = capsys.readouterr().out
    assert shown.startswith("### Added\n\n- A thing.\n")
    assert '-__version__ = "0.1.0"\n+__version__ = "0.2.0"\n' in shown
    assert f"+## [0.2.0] - {datetime.datetime.now(datetime.UTC).date()}\n" in shown
    assert shown.endswith("A dry run: nothing was changed.\n")
    assert not git(repository, "status", "--porcelain")


def test_a_release_is_a_commit_and_a_tag_with_its_notes(repository: Path, release: Any) -> None:
    release.main(repository, "0.2.0", commit=True)
    assert not git(repository, "status", "--porcelain")
    assert git(repository, "log", "--format=%s", "-1") == "Release 0.2.0\n"
    assert git(repository, "describe") == "v0.2.0\n"
    # git drops lines that begin with # where it thinks of an editor: the heads of the notes must stay
    assert "### Added\n\n- A thing." in git(repository, "tag", "--list", "--format=%(contents)", "v0.2.0")
    changelog = (repository / "CHANGELOG.md").read_text()
    assert changelog.startswith("# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - ")
    assert release.notes(changelog, "0.2.0") == "### Added\n\n- A thing.\n"
    assert release.notes(changelog, "0.1.0") == "- The first.\n"
    with pytest.raises(SystemExit, match="has no notes for Unreleased"):
        release.main(repository, "0.3.0", commit=False)


@pytest.mark.parametrize("version", ["0.1.0", "0.0.9", "0.2", "v0.2.0", "0.2.0-rc1"])
def test_a_version_that_cannot_follow_is_refused(repository: Path, release: Any, version: str) -> None:
    with pytest.raises(SystemExit, match=r"does not follow|is not MAJOR\.MINOR\.PATCH"):
        release.main(repository, version, commit=True)
    assert not git(repository, "tag")


def test_ten_follows_nine(repository: Path, release: Any) -> None:
    release.main(repository, "0.10.0", commit=True)
    with pytest.raises(SystemExit, match="does not follow"):
        release.main(repository, "0.9.0", commit=True)


@pytest.mark.parametrize("where", ["dirty", "branch"])
def test_only_a_clean_main_is_released(
    repository: Path, release: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "dirty":
        (repository / "new.py").write_text("")
    else:
        git(repository, "switch", "--quiet", "--create", "other")
    release.main(repository, "0.2.0", commit=False)
    assert "a release would be refused: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"not clean|not main"):
        release.main(repository, "0.2.0", commit=True)
    assert not git(repository, "tag")


def test_the_notes_for_github_are_of_the_version_in_the_source(repository: Path) -> None:
    """As the workflow calls it, in a copy: a tag that is not the version fails."""
    script = repository / ".github" / "release.py"
    script.parent.mkdir()
    script.write_text(SCRIPT.read_text())
    typed = [sys.executable, str(script), "--notes"]
    good = subprocess.run([*typed, "0.1.0"], capture_output=True, text=True, check=True)
    assert good.stdout == "- The first.\n"
    bad = subprocess.run([*typed, "0.2.0"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "is not 0.2.0" in bad.stderr


def test_this_changelog_can_be_released(release: Any) -> None:
    files = release.released(ROOT, "999.0.0", datetime.date(2030, 1, 1))
    assert "## [999.0.0] - 2030-01-01" in files["CHANGELOG.md"]
    assert '__version__ = "999.0.0"' in files["serve_app/__init__.py"]
