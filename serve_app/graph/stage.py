"""The base class of all stages."""

from __future__ import annotations

from serve_app.graph.replica import Replica


class Stage(Replica):
    """Base of Preprocessor, Detector and Postprocessor: answers readiness checks."""

    def ready(self) -> None:
        """Does nothing. A replica can run it only after `__init__`, so an answer means that the replica is up."""
