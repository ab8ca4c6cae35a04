"""`make abuse`: hostile requests. Each must get its 4xx quickly and cheaply while a good client keeps succeeding.

For each request it prints status and code, the seconds until the answer, the extra memory of all processes of the
service during the request, and how many requests of the good client were answered meanwhile.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import psutil

from loadtests.service import Service, config, free_port, running
from serve_app.vision.sample_photos import bus


def bomb_png() -> bytes:
    """A PNG whose header declares 2 gigapixels and whose data is 40 KB of compressed zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 40_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(40_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def long_gif(frames: int) -> bytes:
    """An animated GIF of one-pixel frames, 23 bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04" + bytes(5) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


def post(url: str, content: bytes | Iterator[bytes], kind: str) -> tuple[int, str]:
    """Posts a body to `/v1/predict`; returns status and code of the answer."""
    answer = httpx.post(f"{url}/v1/predict", content=content, headers={"Content-Type": kind}, timeout=30)
    return answer.status_code, answer.json().get("code", "")


def many_files(count: int) -> bytes:
    """A form with `count` parts named `file`."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nx\r\n'
    return part * count + b"--x--\r\n"


def slow_loris(url: str) -> tuple[int, str]:
    """Announces a body of 1 MB and sends one byte of it every 0.2 s; returns status and code of the answer."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=30) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/png\r\n"
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode())
        connection.settimeout(0.2)
        answer = b""
        for _ in range(150):
            try:
                answer += connection.recv(65536)
                break
            except TimeoutError:
                connection.sendall(b"x")
        connection.settimeout(5)
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            answer += connection.recv(65536)
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), json.loads(body)["code"]


CASES: dict[str, tuple[int, str, Callable[[str], tuple[int, str]]]] = {
    "PNG of 2,000 MP in 40 KB": (413, "image_too_large", lambda url: post(url, bomb_png(), "image/png")),
    "GIF of 10,000 frames": (413, "image_too_complex", lambda url: post(url, long_gif(10_000), "image/gif")),
    "GIF of 800,000 frames": (413, "image_too_complex", lambda url: post(url, long_gif(800_000), "image/gif")),
    "body of 100 MB": (413, "payload_too_large", lambda url: post(url, bytes(100_000_000), "image/png")),
    "body of 100 MB, length untold": (
        413,
        "payload_too_large",
        lambda url: post(url, (bytes(1_000_000) for _ in range(100)), "image/png"),
    ),
    "1,000 files": (
        413,
        "payload_too_large",
        lambda url: post(url, many_files(1000), "multipart/form-data; boundary=x"),
    ),
    "upload of 5 bytes/s": (408, "upload_too_slow", slow_loris),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one hostile request, and its cost. `good` and `lost` count requests of the good client."""

    name: str
    expected: tuple[int, str]
    got: tuple[int, str]
    seconds: float
    extra_bytes: int
    good: int
    lost: int


def memory(pid: int) -> int:
    """Memory of all processes of the service in bytes, excluding shared memory."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            info = process.memory_info()
            total += info.rss - info.shared
        except psutil.NoSuchProcess:
            continue
    return total


def attack(service: Service, name: str, pause_s: float = 0.0) -> Outcome:
    """Sends one hostile request while a good client keeps sending a photo, with a pause after each answer."""
    status, code, send = CASES[name]
    stop = threading.Event()
    good, lost, peaks = [0], [0], [0]

    def be_good() -> None:
        with httpx.Client(base_url=service.url, timeout=30) as http:
            while not stop.is_set():
                answer = http.post("/v1/predict", files={"file": bus()})
                names = [r["name"] for r in answer.json()["images"][0]["results"]] if answer.is_success else []
                (good if "bus" in names else lost)[0] += 1
                time.sleep(pause_s)

    def watch() -> None:
        while not stop.is_set():
            peaks.append(memory(service.pid))
            time.sleep(0.02)

    client, watcher = threading.Thread(target=be_good), threading.Thread(target=watch)
    client.start()
    time.sleep(1)  # the baseline includes the memory that the good client needs
    before = memory(service.pid)
    watcher.start()
    started = time.perf_counter()
    got = send(service.url)
    seconds = time.perf_counter() - started
    time.sleep(0.5)
    stop.set()
    client.join()
    watcher.join()
    return Outcome(name, (status, code), got, seconds, max(peaks) - before, good[0], lost[0])


def main() -> None:
    """Prints the table. Exits with 1 if an answer was not the expected one or a good request was lost."""
    print(
        "| attack | answer | seconds | extra memory, MB | good requests meanwhile | lost |\n|---|---|---|---|---|---|"
    )
    bad = 0
    with running(config(free_port())) as service:
        for _ in range(30):  # warms the allocators: later photos cost a process no new memory
            post(service.url, bus(), "image/jpeg")
        for name in CASES:
            one = attack(service, name)
            bad += one.got != one.expected or one.lost > 0
            cells = (name, "{} `{}`".format(*one.got), f"{one.seconds:.2f}", f"{one.extra_bytes / 1e6:.0f}")
            print("|", " | ".join((*cells, str(one.good), str(one.lost))), "|", flush=True)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
