"""Which replica's death lost a stage, however Ray says it."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException

from serve_app.http.ingress import StageLost, translate_ray_errors

DIED = ActorDiedError.__new__(ActorDiedError)
RayActorError.__init__(DIED, "a1")


def upstream(cause: Exception) -> RayServeException:
    """What Serve raises for a call whose input was lost with the stage before it."""
    error = RayServeException("its input was lost")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (DIED, "a1"),
        (upstream(DIED), "a1"),
        (RayTaskError("f", "trace", DIED), "a1"),
        (upstream(ValueError()), None),
        (RayActorError("a1"), None),  # not reachable now, perhaps alive
        (RayServeException("no replica"), None),
    ],
)
def test_a_death_is_told_from_other_losses(error: Exception, died: str | None) -> None:
    async def scenario() -> None:
        async with translate_ray_errors():
            raise error

    with pytest.raises(StageLost) as lost:
        asyncio.run(scenario())
    assert lost.value.died == died
