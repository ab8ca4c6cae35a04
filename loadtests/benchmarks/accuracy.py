"""`make accuracy`: COCO accuracy through the running HTTP service (`MODEL=default` for the bundled model).

Photos go over HTTP with conf 0.001, iou 0.7 and max_det 300, the settings of COCO's evaluation. pycocotools scores the
answers. Labels are YOLO files (class, centre x and y, width and height as fractions) with the class ids of the model.
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
from serve_app.weights.identity import pin_file

ASK = {"conf": "0.001", "iou": "0.7", "max_det": "300"}


def detect(url: str, photos: list[Path], clients: int = 4) -> list[dict[str, Any]]:
    """The service's answer for each photo, in order. Raises httpx.HTTPStatusError for a status other than 2xx."""
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
    """The YOLO labels as a COCO data set, with boxes in pixels."""
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


# By model: pairs of folders (photos, labels) below `--data`. The labels have the classes of the model.
FOLDERS = {
    "yolov8n": [("images/coco128-val", "images/coco128-val-labels")],
    "default": [
        ("train-road5/images/val", "train-road5/labels/val"),
        ("train-road5/images/test", "train-road5/labels/test"),
    ],
}


def main(model: str, data: Path, url: str | None) -> None:
    """Prints a line for each folder. Starts a service unless `url` is given."""
    chosen = pin_file("auto").name if model == "auto" else model
    if url is None:
        with running(config(free_port(), weights=f"models/{chosen}.pt")) as service:
            return main(chosen, data, service.url)
    for images, labels in FOLDERS[chosen]:
        photos = sorted((data / images).glob("*.jpg"))
        strict, loose = score(photos, data / labels, detect(url, photos))
        print(f"{chosen} on {images}: {len(photos)} photos, mAP50-95 {strict:.4f}, mAP50 {loose:.4f}", flush=True)
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto", choices=["auto", *FOLDERS])
    parser.add_argument("--data", type=Path, required=True, help="folder with the photos and labels")
    parser.add_argument("--url", help="URL of a running service with the same model; one is started when not given")
    main(**vars(parser.parse_args()))
