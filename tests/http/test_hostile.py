"""Short forms of `make abuse` and `make fuzz`, and schemathesis over the OpenAPI document."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.drills.abuse import CASES, attack
from loadtests.drills.fuzz import contract, fuzz
from loadtests.service import Service


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_gets_its_4xx_and_harms_nobody(service: Service, name: str) -> None:
    outcome = attack(service, name, pause_s=0.1)
    assert outcome.got == outcome.expected
    assert outcome.lost == 0
    assert outcome.good > 0


def test_mutated_requests_get_proper_answers(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts, findings, _ = fuzz(service, 400, seed=7)
    assert findings == []
    statuses = {status for _, status in counts}
    assert {200, 400, 422} <= statuses, "some got through, some were refused at each layer"


def test_the_openapi_document_is_kept(server: str) -> None:
    """No 5xx, and every answer has a documented status, content type and shape."""
    ended = contract(server, examples=15, seed=1)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
