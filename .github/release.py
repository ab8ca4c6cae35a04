"""`release.py VERSION`: shows a release of the changes under [Unreleased]; with `--commit` it makes the release.

The notes are from CHANGELOG.md. `--notes` prints those of the released version, for GitHub.
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
    """The numbers of a version MAJOR.MINOR.PATCH. Raises SystemExit for any other version."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is not MAJOR.MINOR.PATCH")
    return tuple(int(part) for part in version.split("."))


def notes(changelog: str, version: str) -> str:
    """The changelog's section of a version. Raises SystemExit when it is missing or empty."""
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        sys.exit(f"{CHANGELOG} has no notes for {version}")
    return found[1].strip() + "\n"


def released(folder: Path, version: str, day: datetime.date) -> dict[str, str]:
    """The changed files of the release, by name. Raises SystemExit when the version does not follow."""
    changelog, source = ((folder / name).read_text() for name in (CHANGELOG, VERSIONED))
    now = NOW.search(source)
    assert now
    if parts(version) < parts(now[1]) or f"## [{version}]" in changelog:
        sys.exit(f"{version} does not follow {now[1]}, or is released already")
    notes(changelog, "Unreleased")
    return {
        CHANGELOG: changelog.replace(HEAD, f"{HEAD}\n## [{version}] - {day}\n", 1),
        VERSIONED: NOW.sub(f'__version__ = "{version}"', source),
    }


def git(folder: Path, *typed: str) -> str:
    """Runs git and returns its output. Raises CalledProcessError."""
    return subprocess.run(["git", *typed], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def refusals(folder: Path) -> list[str]:
    """The reasons why nothing may be released from this checkout."""
    refused = []
    if git(folder, "branch", "--show-current") != "main":
        refused.append("the branch is not main")
    if git(folder, "status", "--porcelain"):
        refused.append("the working tree is not clean")
    return refused


def main(folder: Path, version: str, commit: bool) -> None:
    """Shows the release, or commits and tags it. Raises SystemExit when it is refused."""
    files = released(folder, version, datetime.datetime.now(datetime.UTC).date())
    print(notes(files[CHANGELOG], version))
    for name, text in files.items():
        old = (folder / name).read_text().splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(old, text.splitlines(keepends=True), f"a/{name}", f"b/{name}", n=1))
    refused = "; ".join(refusals(folder))
    if not commit:
        print(f"\nA dry run: nothing was changed{f', and a release would be refused: {refused}' if refused else ''}.")
        return
    if refused:
        sys.exit(refused)
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "commit", "--quiet", "--message", f"Release {version}", "--", *files)
    message = f"{version}\n\n{notes(files[CHANGELOG], version)}"
    git(folder, "tag", "--annotate", "--cleanup=whitespace", "--message", message, f"v{version}")  # keeps # lines
    print(f"\nTagged v{version}. To release it: git push --atomic origin main v{version}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("--commit", action="store_true", help="commit and tag the release")
    parser.add_argument("--notes", action="store_true", help="print the notes of the released version")
    args = parser.parse_args()
    if args.notes:
        now = NOW.search((ROOT / VERSIONED).read_text())
        if not now or now[1] != args.version:
            sys.exit(f"the version in {VERSIONED} is not {args.version}")
        print(notes((ROOT / CHANGELOG).read_text(), args.version), end="")
    else:
        main(ROOT, args.version, args.commit)
