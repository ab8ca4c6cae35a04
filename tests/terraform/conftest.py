"""The emulated account, applied once for all files of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.terraform.applied import Root, applied


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """Neither PyPI nor Debian has Terraform, so a machine without it skips this folder."""
    if not shutil.which("terraform"):
        pytest.skip("no terraform")


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """What is applied; test_terraform.py, the last file, destroys it at its end."""
    with applied(tmp_path_factory.mktemp("terraform")) as root:
        yield root
