"""Requests that come together share a forward pass, and nobody pays for a neighbour's broken image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from loadtests.service import Service
from tests.test_predict import same


def together(server: str, bodies: list[bytes]) -> list[httpx.Response]:
    with httpx.Client(base_url=server, timeout=60) as http, ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda b: http.post("/v1/predict", files={"file": b}), bodies))


def test_seven_right_answers_beside_a_broken_image(graph: Service, bus: bytes, zidane: bytes) -> None:
    alone = {photo: together(graph.url, [photo])[0].json()["images"][0] for photo in (bus, zidane)}
    bodies = [bus, zidane, bus, bus[:5000], zidane, bus, zidane, bus]
    largest = 0
    for _ in range(5):  # which requests meet in a batch is a matter of milliseconds; that some do is not
        answers = together(graph.url, bodies)
        assert [a.status_code for a in answers] == [200, 200, 200, 400, 200, 200, 200, 200]
        assert answers[3].json()["code"] == "corrupt_image"
        for body, answer in zip(bodies, answers, strict=True):
            if answer.status_code == 200:
                image = answer.json()["images"][0]
                same(alone[body], image)
                largest = max(largest, image["batch_size"])
    assert largest > 1


def test_batch_mates_keep_their_own_options(graph: Service, bus: bytes) -> None:
    def ask(c: float) -> tuple[int, list[float]]:
        with httpx.Client(base_url=graph.url, timeout=60) as http:
            answer = http.post("/v1/predict", params={"conf": c}, files={"file": bus}).json()
        image = answer["images"][0]
        return image["batch_size"], [r["confidence"] for r in image["results"]]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [0.25, 0.8] * 8))
    assert max(size for size, _ in answers) > 1
    for (_, low), (_, high) in zip(answers[::2], answers[1::2], strict=True):
        assert min(high) >= 0.8
        assert min(low) < 0.8
