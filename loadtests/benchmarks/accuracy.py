"""`make accuracy`: accuracy through the running HTTP service, of any task (`MODEL=default` for the bundled model).

Photos go over HTTP with conf 0.001, iou 0.7 and max_det 300, the settings of COCO's evaluation. pycocotools scores the
answers: boxes, masks, key points, and turned boxes as polygons. Labels are those of YOLO's format for the task, with
the class ids of the model: DATA/labels/ beside DATA/images/, or DATA/images/CLASS/ for classify, where the best class
and the best five are scored.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from loadtests.service import config, free_port, running
from serve_app.vision.tasks.by_name import TASKS
from serve_app.weights.identity import pin_file

ASK = {"conf": "0.001", "iou": "0.7", "max_det": "300"}
KINDS = {"detect": ("bbox",), "segment": ("bbox", "segm"), "pose": ("bbox", "keypoints"), "obb": ("segm",)}


def detect(url: str, photos: list[Path], ask: dict[str, str] = ASK, clients: int = 4) -> list[dict[str, Any]]:
    """The service's answer for each photo, in order. Raises httpx.HTTPStatusError for a status other than 2xx."""
    with httpx.Client(base_url=url, timeout=120) as http:

        def send(photo: Path) -> dict[str, Any]:
            answer = http.post(
                "/v1/predict", params=ask, content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}
            )
            answer.raise_for_status()
            image: dict[str, Any] = answer.json()["images"][0]
            return image

        with ThreadPoolExecutor(clients) as pool:
            return list(tqdm(pool.map(send, photos), total=len(photos), unit="photo"))


def annotation(task: str, values: list[float], width: int, height: int) -> dict[str, Any]:
    """A line of a YOLO label file, without its class, as COCO has it: in pixels."""
    if task in ("segment", "obb"):
        x, y = [v * width for v in values[::2]], [v * height for v in values[1::2]]
        box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        return {"bbox": box, "segmentation": [[v for point in zip(x, y, strict=True) for v in point]]}
    cx, cy, w, h, *points = values
    made: dict[str, Any] = {"bbox": [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]}
    if points:
        seen = [(px * width, py * height, v) for px, py, v in zip(*(points[i::3] for i in range(3)), strict=True)]
        made |= {"keypoints": [v for point in seen for v in point], "num_keypoints": sum(v > 0 for *_, v in seen)}
    return made


def truth(photos: list[Path], labels: Path, answers: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """The YOLO labels as a COCO data set."""
    annotations: list[dict[str, Any]] = []
    images = []
    for i, (photo, answer) in enumerate(zip(photos, answers, strict=True)):
        height, width = answer["shape"]
        images.append({"id": i, "width": width, "height": height})
        file = labels / f"{photo.stem}.txt"
        for line in file.read_text().splitlines() if file.exists() else ():
            k, *values = map(float, line.split())
            made = annotation(task, values, width, height)
            ids = {"id": len(annotations) + 1, "image_id": i, "category_id": int(k)}
            annotations.append(made | ids | {"area": made["bbox"][2] * made["bbox"][3], "iscrowd": 0})
    categories = [{"id": k} for k in sorted({a["category_id"] for a in annotations})]
    return {"images": images, "annotations": annotations, "categories": categories}


def score(
    photos: list[Path], labels: Path, answers: list[dict[str, Any]], task: str = "detect", kind: str = "bbox"
) -> tuple[float, float]:
    """(mAP50-95, mAP50) of one of KINDS, over the classes that occur in the labels."""
    found = [
        coco | {"image_id": i, "category_id": r["class"], "score": r["confidence"], "bbox": list(coco["bbox"])}
        for i, answer in enumerate(answers)
        for r, coco in zip(answer["results"], TASKS[task].coco(answer["results"], 2), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth(photos, labels, answers, task)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        points = next((len(f["keypoints"]) // 3 for f in found if "keypoints" in f), 17)
        if points != 17:  # COCO knows how exactly people place its own 17; of others, Ultralytics takes this
            evaluation.params.kpt_oks_sigmas = np.full(points, 1 / points)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def best(photos: list[Path], answers: list[dict[str, Any]]) -> tuple[float, float]:
    """The shares of photos whose class, the name of their folder, is the best one, and among the best five."""
    names = [[r["name"] for r in answer["results"]] for answer in answers]
    places = [
        found.index(p.parent.name) if p.parent.name in found else 5 for p, found in zip(photos, names, strict=True)
    ]
    return sum(place == 0 for place in places) / len(photos), sum(place < 5 for place in places) / len(photos)


# By model: pairs of folders (photos, labels) below `--data`. The labels have the classes of the model.
FOLDERS = {
    "yolov8n": [("images/coco128-val", "images/coco128-val-labels")],
    "default": [
        ("train-road5/images/val", "train-road5/labels/val"),
        ("train-road5/images/test", "train-road5/labels/test"),
    ],
}


def main(model: str, data: Path, url: str | None) -> None:
    """Prints the scores for each folder. Starts a service unless `url` is given."""
    chosen = pin_file("auto").name if model == "auto" else model
    if url is None:
        weights = model if model.endswith(".pt") else f"models/{chosen}.pt"
        with running(config(free_port(), weights=weights)) as service:
            return main(chosen, data, service.url)
    task = httpx.get(f"{url}/v1/models").raise_for_status().json()["models"][0]["task"]
    for images, labels in FOLDERS.get(chosen, [("images", "labels")]):
        photos = sorted((data / images).rglob("*.jpg"))
        answers = detect(url, photos, {"topk": "5"} if task == "classify" else ASK)
        at = f"{chosen} on {images}: {len(photos)} photos"
        if task == "classify":
            print(f"{at}, top-1 {best(photos, answers)[0]:.4f}, top-5 {best(photos, answers)[1]:.4f}", flush=True)
        for kind in KINDS.get(task, ()):
            strict, loose = score(photos, data / labels, answers, task, kind)
            print(f"{at}, {kind}: mAP50-95 {strict:.4f}, mAP50 {loose:.4f}", flush=True)
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto", help=f"auto, {', '.join(FOLDERS)}, or a .pt file")
    parser.add_argument("--data", type=Path, required=True, help="folder with the photos and labels")
    parser.add_argument("--url", help="URL of a running service with the same model; one is started when not given")
    main(**vars(parser.parse_args()))
