"""LitServe as its first example has it: one worker process, the image in JSON as base64."""

import base64
import sys
from typing import Any

import litserve
from fastapi import Request

from loadtests.compare import recogniser


class Api(litserve.LitAPI):  # type: ignore[misc] # no types here
    """JPEG to boxes."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Loads the network once in the worker."""
        self.recognise = recogniser.from_environment()

    def decode_request(self, request: Request) -> bytes:
        """The JPEG. LitServe gives the JSON of a request to whatever says that it takes a Request."""
        return base64.b64decode(request["image"])

    def predict(self, x: bytes) -> list[dict[str, Any]]:
        """The objects."""
        return self.recognise(x)

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        """JSON."""
        return {"results": output}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu", timeout=60).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
