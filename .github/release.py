"""`release.py VERSION`: what a release of the changes under [Unreleased] would be; with `--commit` it is made.

The notes are CHANGELOG.md's. `--notes` prints those of a version that is released: for GitHub.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG, VERSIONED = "CHANGELOG.md", "serve_app/__init__.py"
HEAD = "## [Unreleased]\n"
NOW = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def parts(version: str) -> tuple[int, ...]:
    """Of a semantic version. Raises SystemExit."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is not MAJOR.MINOR.PATCH")
    return tuple(int(part) for part in version.split("."))


def notes(changelog: str, version: str) -> str:
    """The section of a version. Raises SystemExit where there is none, or nothing in it."""
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        sys.exit(f"{CHANGELOG} says nothing of {version}")
    return found[1].strip() + "\n"


def released(folder: Path, version: str, day: datetime.date) -> dict[str, str]:
    """The files as the release has them. Raises SystemExit for a version that cannot follow."""
    changelog, source = ((folder / name).read_text() for name in (CHANGELOG, VERSIONED))
    now = NOW.search(source)
    assert now
    if parts(version) < parts(now[1]) or f"## [{version}]" in changelog:
        sys.exit(f"{version} does not follow {now[1]}, or is released")
    notes(changelog, "Unreleased")
    return {
        CHANGELOG: changelog.replace(HEAD, f"{HEAD}\n## [{version}] - {day}\n", 1),
        VERSIONED: NOW.sub(f'__version__ = "{version}"', source),
    }


def git(folder: Path, *typed: str) -> str:
    """Its output. Raises CalledProcessError."""
    return subprocess.run(["git", *typed], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def refusals(folder: Path) -> list[str]:
    """Why nothing may be released from here."""
    refused = []
    if git(folder, "branch", "--show-current") != "main":
        refused.append("this is not main")
    if git(folder, "status", "--porcelain"):
        refused.append("main is not clean")
    return refused


def main(folder: Path, version: str, commit: bool) -> None:
    """Raises SystemExit."""
    files = released(folder, version, datetime.datetime.now(datetime.UTC).date())
    print(notes(files[CHANGELOG], version))
    for name, text in files.items():
        old = (folder / name).read_text().splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(old, text.splitlines(keepends=True), f"a/{name}", f"b/{name}", n=1))
    refused = "; ".join(refusals(folder))
    if not commit:
        print(f"\nA dry run: nothing was changed{f', and it would be refused: {refused}' if refused else ''}.")
        return
    if refused:
        sys.exit(refused)
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "commit", "--quiet", "--message", f"Release {version}", "--", *files)
    message = f"{version}\n\n{notes(files[CHANGELOG], version)}"
    git(folder, "tag", "--annotate", "--cleanup=whitespace", "--message", message, f"v{version}")  # `#` is no comment
    print(f"\nTagged v{version}. To release it: git push --atomic origin main v{version}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("--commit", action="store_true")
    parser.add_argument("--notes", action="store_true")
    asked = parser.parse_args()
    if asked.notes:
        now = NOW.search((ROOT / VERSIONED).read_text())
        if not now or now[1] != asked.version:
            sys.exit(f"{VERSIONED} is not of {asked.version}")
        print(notes((ROOT / CHANGELOG).read_text(), asked.version), end="")
    else:
        main(ROOT, asked.version, asked.commit)
