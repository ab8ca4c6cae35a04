"""What work costs on instances with a price per hour."""

from __future__ import annotations

from typing import NamedTuple


class Instance(NamedTuple):
    """The type of a node and its price per hour."""

    name: str
    hourly: float

    @classmethod
    def parse(cls, text: str) -> Instance:
        """Parses `g6.xlarge:0.8/h`. Raises ValueError."""
        name, _, price = text.removesuffix("/h").partition(":")
        if not name or not price:
            raise ValueError(f"{text!r} is not like g6.xlarge:0.8/h")
        return cls(name, float(price))

    def per_million(self, nodes: int, images_per_s: float) -> float:
        """The price of a million images at a rate that so many nodes have together."""
        return nodes * self.hourly / (images_per_s * 3600) * 1e6
