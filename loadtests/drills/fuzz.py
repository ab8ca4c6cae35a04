"""`make fuzz`: sends mutated images, forms and JSON. Every answer must be a 200 or a 4xx problem document, within 30 s.

Sends 10,000 requests and prints counts by kind and status, the slowest answer, and the service's memory before and
after. Then schemathesis checks the service against its OpenAPI document. Bodies with a finding are saved to `fuzz/`.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image
from tqdm import tqdm

from loadtests.drills.abuse import memory
from loadtests.service import ROOT, Service, config, free_port, running
from serve_app import deadline
from serve_app.vision.sample_photos import bus

KINDS = ("image", "image", "form", "json", "oip", "kserve")
OPTIONS = ("conf", "iou", "classes", "max_det", "format", "normalize", "decimals", "unknown")
VALUES: tuple[object, ...] = (
    0, 1, 0.5, -1, 1e308, "nan", "", "0,1", [0, 1], {}, None, True, "json", "coco", "\ud800", "bus,0", {"bus": 0.5},
    '{"bus": 0.5}', {"0": 2},
)  # fmt: skip


def seeds() -> list[bytes]:
    """A small picture in every format and mode: plain, with EXIF orientation, animated; and the HEICs of the tests."""
    picture = Image.open(io.BytesIO(bus())).resize((60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000"):
        for mode in ("RGB", "L", "P", "RGBA"):
            for options in ({}, {"exif": exif}, {"save_all": True, "append_images": [picture.rotate(90)]}):
                file = io.BytesIO()
                try:
                    picture.convert(mode).save(file, kind, **options)
                except (OSError, ValueError, KeyError, RuntimeError):
                    continue  # the format does not support this mode or option
                found.append(file.getvalue())
    return found + [path.read_bytes() for path in sorted((ROOT / "tests" / "vision").glob("*.heic"))]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few random edits: bytes changed, deleted, repeated or cut off, bits flipped, integers set to extremes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        edit = rng.randrange(6)
        if edit == 0:
            content[at : at + length] = rng.randbytes(length)
        elif edit == 1:
            del content[at : at + length]
        elif edit == 2:
            content[at:at] = content[at : at + length]
        elif edit == 3:
            content[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01"))
        elif edit == 4:
            del content[at:]
        elif content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        content = content or bytearray(b"\0")
    return bytes(content)


def packed(prepared: httpx.Request, rng: random.Random) -> httpx.Request:
    """The same request with a body in gzip, with or without damage to it."""
    body = gzip.compress(prepared.content, 1)
    body = mutate(body, rng) if rng.random() < 0.5 else body
    headers = {"Content-Type": prepared.headers["content-type"], "Content-Encoding": "gzip"}
    return httpx.Request("POST", prepared.url, content=body, headers=headers)


def request(kind: str, pictures: list[bytes], rng: random.Random) -> httpx.Request:
    """A request of one of KINDS, with or without damage to its image and body."""
    picture = rng.choice(pictures)
    data = mutate(picture, rng) if rng.random() < 0.8 else picture
    options = {name: rng.choice(VALUES) for name in rng.sample(OPTIONS, rng.choice((0, 0, 1, 2)))}
    text = base64.b64encode(data).decode()
    url = "http://service/v1/predict"
    if kind == "image":
        return httpx.Request("POST", url, content=data, headers={"Content-Type": "image/jpeg"})
    if kind == "form":
        fields = "".join(
            f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in options.items()
        )
        head = '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = (fields + head).encode(errors="replace") + data + b"\r\n--x--\r\n"
        body = mutate(body, rng) if rng.random() < 0.5 else body
        return httpx.Request("POST", url, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    if kind == "json":
        body = json.dumps({"source": rng.choice((text, [text], [text, 5], None)), **options}).encode()
    elif kind == "kserve":
        url = f"http://service/v1/models/{rng.choice(('yolov8n', 'default'))}:predict"
        instance = rng.choice((text, {"b64": text}, {"image": {"b64": text}}, {}, 5))
        body = json.dumps({"instances": [instance], "parameters": options}).encode()
    else:
        url = f"http://service/v2/models/{rng.choice(('yolov8n', 'default'))}/infer"
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
        wanted: object = rng.choice((None, [], [{"name": "boxes"}], [{"name": "masks"}], [5], {}))
        body = json.dumps({"inputs": [tensor], "parameters": options, "outputs": wanted}).encode()
    body = mutate(body, rng) if rng.random() < 0.5 else body
    return httpx.Request("POST", url, content=body, headers={"Content-Type": "application/json"})


def fuzz(
    service: Service, count: int, seed: int, clients: int = 4
) -> tuple[Counter[tuple[str, int]], list[str], float]:
    """Returns counts by (kind, status), findings (see `proper`), and the slowest answer in seconds."""
    rng = random.Random(seed)
    pictures = seeds()
    requests = [(kind, request(kind, pictures, rng)) for kind in rng.choices(KINDS, k=count)]
    requests = [(kind, packed(one, rng) if rng.random() < 0.1 else one) for kind, one in requests]
    counts: Counter[tuple[str, int]] = Counter()
    findings: list[str] = []
    slowest = 0.0

    with httpx.Client(timeout=30) as http:

        def send(job: tuple[str, httpx.Request]) -> tuple[str, httpx.Request, httpx.Response | None, float]:
            kind, prepared = job
            started = time.perf_counter()
            target = service.url + prepared.url.raw_path.decode()
            kept = {k: v for k, v in prepared.headers.items() if k.startswith("content-") and k != "content-length"}
            try:
                answer = http.post(target, content=prepared.content, headers=kept)
            except httpx.HTTPError:
                answer = None
            return kind, prepared, answer, time.perf_counter() - started

        with ThreadPoolExecutor(clients) as pool:
            for kind, prepared, answer, took in tqdm(pool.map(send, requests), total=count, disable=count < 1000):
                status = answer.status_code if answer is not None else 0
                counts[kind, status] += 1
                slowest = max(slowest, took)
                if not proper(answer):
                    text = answer.text[:200] if answer is not None else "no answer"
                    findings.append(f"{kind} {status} {text}: {save(prepared.content)}")
    return counts, findings, slowest


def proper(answer: httpx.Response | None) -> bool:
    """Whether it is an answer, no 5xx, and a problem document unless it is a 2xx."""
    if answer is None or answer.status_code >= 500:
        return False
    return answer.is_success or answer.headers["content-type"] == "application/problem+json"


def save(content: bytes) -> Path:
    """Saves the body of a finding; returns its path."""
    folder = Path("fuzz")
    folder.mkdir(exist_ok=True)
    path = folder / f"{abs(hash(content)):016x}"
    path.write_bytes(content)
    return path


def contract(url: str, examples: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Runs schemathesis: no 5xx, and the OpenAPI document names the status, content type and schema of every answer."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", "examples,fuzzing",
        "--max-examples", str(examples), "--checks", checks, "--seed", str(seed), "--request-timeout", "30",
        "--no-color", "--header", f"{deadline.HEADER}: 30000",  # it would send 1 ms, and 504 would be right
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main(count: int, seed: int) -> None:
    """Prints the counts. Exits with 1 if there are findings, or schemathesis fails."""
    with running(config(free_port())) as service:
        fuzz(service, 500, seed + 1)  # warms the allocators
        before = memory(service.pid)
        counts, findings, slowest = fuzz(service, count, seed)
        after = memory(service.pid)
        kept = contract(service.url, examples=count // 100, seed=seed)
    for (kind, status), n in sorted(counts.items()):
        print(f"{kind:6} {status} {n:6}")
    print(f"seed {seed}, slowest {slowest:.2f} s, memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
    print(*findings[:20], f"{len(findings)} findings", sep="\n")
    print(kept.stdout[kept.stdout.find("= SUMMARY =") :])
    raise SystemExit(bool(findings or kept.returncode))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
