"""COCO accuracy through the running HTTP service: `make accuracy` (`MODEL=default` for the bundled model).

Photos go over HTTP at conf 0.001, iou 0.7, max_det 300, the setting of COCO's evaluation; pycocotools scores them.
Labels are YOLO files (class, centre x and y, width, height as fractions), whose class ids are the model's own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from loadtests.service import config, free_port, running

ASK = {"conf": "0.001", "iou": "0.7", "max_det": "300"}


def detect(url: str, photos: list[Path], clients: int = 4) -> list[dict[str, Any]]:
    """The service's answer for each photo, in order. Raises httpx.HTTPStatusError on any that is not 200."""
    with httpx.Client(base_url=url, timeout=120) as http:

        def ask(photo: Path) -> dict[str, Any]:
            answer = http.post(
                "/v1/predict", params=ASK, content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}
            )
            answer.raise_for_status()
            image: dict[str, Any] = answer.json()["images"][0]
            return image

        with ThreadPoolExecutor(clients) as pool:
            return list(tqdm(pool.map(ask, photos), total=len(photos), unit="photo"))


def truth(photos: list[Path], labels: Path, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The labels as a COCO data set."""
    annotations: list[dict[str, Any]] = []
    for i, (photo, answer) in enumerate(zip(photos, answers, strict=True)):
        height, width = answer["shape"]
        file = labels / f"{photo.stem}.txt"
        for line in file.read_text().splitlines() if file.exists() else ():
            k, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(k),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k} for k in sorted({a["category_id"] for a in annotations})]
    return {"images": [{"id": i} for i in range(len(photos))], "annotations": annotations, "categories": categories}


def score(photos: list[Path], labels: Path, answers: list[dict[str, Any]]) -> tuple[float, float]:
    """(mAP50-95, mAP50) over the classes that occur in the labels."""
    found = [
        {
            "image_id": i,
            "category_id": r["class"],
            "score": r["confidence"],
            "bbox": [r["box"]["x1"], r["box"]["y1"], r["box"]["x2"] - r["box"]["x1"], r["box"]["y2"] - r["box"]["y1"]],
        }
        for i, answer in enumerate(answers)
        for r in answer["results"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth(photos, labels, answers)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def report(url: str, folders: list[tuple[Path, Path]]) -> None:
    """Prints a line for each pair of folders (photos, labels)."""
    for images, labels in folders:
        photos = sorted(images.glob("*.jpg"))
        strict, loose = score(photos, labels, detect(url, photos))
        print(f"{images}: {len(photos)} photos, mAP50-95 {strict:.4f}, mAP50 {loose:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--url", help="a service that runs already; else one is started")
    parser.add_argument("folders", type=Path, nargs="+", metavar="IMAGES LABELS", help="pairs of folders")
    args = parser.parse_args()
    pairs = list(zip(args.folders[::2], args.folders[1::2], strict=True))
    if args.url:
        report(args.url, pairs)
    else:
        with running(config(free_port(), weights=args.weights)) as (url, _):
            report(url, pairs)
