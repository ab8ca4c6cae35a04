"""mosec as its first example has it: one worker process behind its own HTTP server, written in Rust."""

import json
from typing import Any

from mosec import Server, Worker

from loadtests.compare import recogniser


class Recogniser(Worker):  # type: ignore[misc] # no types here
    """JPEG to boxes."""

    def __init__(self) -> None:
        self.recognise = recogniser.from_environment()

    def deserialize(self, data: bytes) -> bytes:
        """The JPEG."""
        return data

    def forward(self, data: bytes) -> list[dict[str, Any]]:
        """The objects."""
        return self.recognise(data)

    def serialize(self, data: list[dict[str, Any]]) -> bytes:
        """JSON."""
        return json.dumps({"results": data}).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Recogniser)
    server.run()
