#!/usr/bin/env bash
# smoke.sh IMAGE: runs the image as it is, and checks that it recognises the bus on its own sample photo.
set -euo pipefail
container=$(docker run --detach --shm-size 2g "$1")
trap 'docker logs --tail 50 "$container"; docker rm --force "$container" >/dev/null' EXIT
for _ in $(seq 60); do
  docker exec "$container" wget -q -O /dev/null http://127.0.0.1:8000/readyz && break
  sleep 5
done
docker exec "$container" python -c '
import httpx
from serve_app.vision import sample_photos
answer = httpx.post("http://127.0.0.1:8000/v1/predict", files={"file": sample_photos.bus()}, timeout=60)
found = [r["name"] for r in answer.raise_for_status().json()["images"][0]["results"]]
print(found)
assert "bus" in found
'
