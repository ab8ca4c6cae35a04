"""The shipped application, in which one kind of photo kills the process that decodes it, as a broken decoder would.

Use it as `import_path: loadtests.drills.crashing_photo:build`.
"""

# No `from __future__ import annotations`: Serve reads the type of `args` at run time and ignores a string.
import os
import signal
import tempfile
from pathlib import Path

from ray.serve import Application

from serve_app import app
from serve_app.graph import preprocessor
from serve_app.graph.payloads import Prepared
from serve_app.http import ingress
from serve_app.settings import AppSettings, PredictOptions

DEADLY = b"kills its decoder"  # after the last byte of a JPEG, where decoders ignore it
CRASHES = "crashes"  # file in the service's temporary folder, a byte for each process that died


class Preprocessor(preprocessor.Preprocessor):
    """The shipped Preprocessor, which dies of deadly photos."""

    def prepare(self, data: bytes, options: PredictOptions, most_tiles: int, expires_at: float) -> Prepared:
        """See `preprocessor.Preprocessor`."""
        if DEADLY in data[-100:]:
            with (Path(tempfile.gettempdir()) / CRASHES).open("ab") as file:
                file.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(data, options, most_tiles, expires_at)


class SingleProcessIngress(ingress.SingleProcessIngress):
    """The shipped SingleProcessIngress with this Preprocessor."""

    def __init__(self, settings: AppSettings, weights: str, size: int, task: str) -> None:
        ingress.Preprocessor = Preprocessor  # type: ignore[attr-defined]
        super().__init__(settings, weights, size, task)


def build(args: AppSettings) -> Application:
    """`app.build` with these two deployments."""
    app.SingleProcessIngress, app.Preprocessor = SingleProcessIngress, Preprocessor  # type: ignore[attr-defined]
    return app.build(args)
