"""`python -m models.drift ENDPOINT`: compares what an endpoint answered in the last day with an accepted day.

Runs as a SageMaker processing job, as Model Monitor's own container would, which reads only tables. It reads answers,
not photos.

    /opt/ml/processing/captured/    JSON Lines of SageMaker's data capture, in any subfolder
    /opt/ml/processing/baseline/    report.json of the accepted day, or `{}`: nothing to compare with yet
    /opt/ml/processing/report/      report.json of this day; copy it to `baseline` to accept the day
    /opt/ml/output/message          the number of photos and the drift; SageMaker shows it as the job's ExitMessage

Each distribution's drift is the total variation distance: half the sum of the differences of the shares, from 0 (the
same) to 1 (nothing in common). CloudWatch gets it as the metric `Drift` of the namespace `Recognition`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

BASE = Path("/opt/ml")
DAY = timedelta(days=1)
LEAST = 200  # photos in a day; with fewer, chance alone moves a share by several hundredths
MANY = 8  # objects in a photo that are counted alike from here on


def answers(folder: Path) -> Iterator[tuple[datetime, list[dict[str, Any]]]]:
    """The time and the objects of each captured photo that was answered with boxes as JSON. Raises OSError."""
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            output = record["captureData"].get("endpointOutput", {})
            if output.get("encoding") != "JSON":
                continue  # a drawn photo, or an error without a body
            answer = json.loads(output["data"])
            when = datetime.fromisoformat(record["eventMetadata"]["inferenceTime"])
            for image in answer.get("images", []) if isinstance(answer, dict) else []:  # a list is format=coco
                if "results" in image:
                    yield when, image["results"]


def report(captured: list[tuple[datetime, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The shares of classes, of confidences in tenths and of objects in a photo, in the last day that was captured."""
    newest = max((when for when, _ in captured), default=None)
    photos = [objects for when, objects in captured if newest and when > newest - DAY]
    boxes = [box for objects in photos for box in objects]
    counted = {
        "classes": Counter(str(box["name"]) for box in boxes),
        "confidence": Counter(f"{min(int(box['confidence'] * 10), 9) / 10}" for box in boxes),
        "objects": Counter(str(min(len(objects), MANY)) for objects in photos),
    }
    shares = {name: {k: n / counts.total() for k, n in sorted(counts.items())} for name, counts in counted.items()}
    return {"until": newest.isoformat() if newest else None, "photos": len(photos), **shares}


def drift(now: dict[str, Any], baseline: dict[str, Any]) -> dict[str, float]:
    """The distance of each distribution; empty when one of the days has too few photos, or there is no baseline."""
    if min(now["photos"], baseline.get("photos", 0)) < LEAST:
        return {}
    distances = {}
    for name in ("classes", "confidence", "objects"):
        one, other = now[name], baseline[name]
        distances[name] = sum(abs(one.get(k, 0) - other.get(k, 0)) for k in one | other) / 2
    return distances


def main(endpoint: str, base: Path = BASE) -> int:
    """Writes the report and the metrics; returns the exit code, 0 also when there is drift: the alarm tells of it."""
    files, message = base / "processing", base / "output" / "message"
    now = report(list(answers(files / "captured")))
    distances = drift(now, json.loads((files / "baseline" / "report.json").read_text()))
    for path in (files / "report" / "report.json", message):
        path.parent.mkdir(parents=True, exist_ok=True)
    (files / "report" / "report.json").write_text(json.dumps(now | {"drift": distances}, indent=1))
    message.write_text(json.dumps({"photos": now["photos"], "drift": distances}))
    metrics = [
        {
            "MetricName": "Drift",
            "Dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "Distribution", "Value": name}],
            "Value": distance,
        }
        for name, distance in distances.items()
    ]
    if metrics:
        boto3.client("cloudwatch").put_metric_data(Namespace="Recognition", MetricData=metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
