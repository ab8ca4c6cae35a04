"""What clients see of one event: requests lost, late, wrong, mislabelled or refused, and how long none was answered.

`python -m loadtests.drills.observation URL` sends traffic from where it runs, such as a pod. It reads events from its
input: a line with a name when one begins, and any line when it is over. Then it prints `observed` and the number of bad
answers.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable

from loadtests.photo_mix import resized
from loadtests.traffic import Row, Traffic, stall, tail
from serve_app.vision import sample_photos

CALM_S = 5.0  # traffic before an event, for the share of refusals without one
SETTLE_S = 3.0  # traffic after each event, during which its effects may still show
REFUSED_RISE = 0.01  # an event may add this to the share of refused requests
BAD = ("lost", "late", "wrong")


def observe(
    traffic: Traffic, name: str, event: Callable[[], None], *, refusals: bool = False, prefix: str = ""
) -> list[Row]:
    """Runs one event under traffic and prints a line. Returns the rows that are lost, late, wrong or mislabelled.

    With `refusals`, refused requests are bad too if their share rises by more than REFUSED_RISE.
    """
    if refusals:
        time.sleep(CALM_S)
    began, before = time.monotonic(), sha256(traffic)
    calm = traffic.between(began - CALM_S, began)
    event()
    settled = time.monotonic()
    time.sleep(SETTLE_S)
    known = {before, sha256(traffic)}
    rows = traffic.between(began, time.monotonic())
    bad = [r for r in rows if r.verdict in BAD or (r.verdict == "answered" and r.sha256 not in known)]
    seen = Counter(r.verdict for r in rows)
    mislabelled = len(bad) - sum(seen[v] for v in BAD)
    latency = tail([r for r in rows if r.verdict == "answered"])
    print(
        f"{prefix}{name:34s} sent {len(rows):5d}  answered {seen['answered']:5d}  refused {seen['refused']:4d}  "
        f"lost {seen['lost']:3d}  late {seen['late']:3d}  wrong {seen['wrong']:3d}  mislabelled {mislabelled:3d}  "
        f"p95 {latency:5.2f} s  longest without an answer {stall(rows, began, time.monotonic()):5.2f} s  "
        f"settled {settled - began:5.1f} s",
        flush=True,
    )
    if refusals and refused_share(rows) > refused_share(calm) + REFUSED_RISE:
        print(f"    refused {refused_share(rows):.1%} of the requests, {refused_share(calm):.1%} before", flush=True)
        bad += [r for r in rows if r.verdict == "refused"]
    for row in bad[:8]:
        print(f"    {row.verdict} after {row.done - row.sent:.2f} s: {row.detail[:300]}", flush=True)
    return bad


def refused_share(rows: list[Row]) -> float:
    """The share of refused requests, from 0 to 1."""
    return sum(row.verdict == "refused" for row in rows) / max(len(rows), 1)


def content_of() -> list[bytes]:
    """Two small photos and one of 0.85 MB. Above 1 MB HAProxy keeps no copy of a body, so it cannot retry it."""
    return [sample_photos.bus(), sample_photos.zidane(), resized(sample_photos.bus(), 2)]


def sha256(traffic: Traffic) -> str:
    """The sha256 of the weights in the latest answer."""
    return next((row.sha256 for row in reversed(traffic.rows) if row.verdict == "answered"), "")


def main(url: str) -> None:
    """Observes the events that the input names."""
    traffic = Traffic(url, content_of())
    with traffic.flowing(closed=2, rate=2):
        for name in sys.stdin:
            bad = observe(traffic, name.strip(), sys.stdin.readline, prefix="pod    ")  # type: ignore[arg-type]
            print("observed", len(bad), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
