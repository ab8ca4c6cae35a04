# One image for Ray's head and workers, and for `docker run`. To build for a GPU:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG PYTHON=3.11-slim-bookworm

FROM docker.io/library/python:${PYTHON} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
# Dependencies first: this layer is nearly all of the image, and is rebuilt only when a version changes.
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY serve_app/__init__.py serve_app/
# Only torch comes from its own index: a second index for all packages would be a second source of each.
RUN pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" --no-deps torch \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && cp /opt/venv/bin/haproxy-keeper /tmp && pip uninstall --yes image-recognition pip setuptools \
    && mv /tmp/haproxy-keeper /opt/venv/bin \
    && find /opt/venv -name '__pycache__' -prune -exec rm -r {} +
COPY serve_app serve_app
COPY models models
COPY serve_config.yaml ./
RUN python -m compileall -q /opt/venv /app || true

FROM docker.io/library/python:${PYTHON} AS service
# KubeRay's probes are `bash -c "wget … | grep …"`; PyTorch needs libgomp.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray \
    && install -d -o ray -g ray /app/models/cache
COPY --from=build /opt/venv /opt/venv
# The service's user cannot change its own code.
COPY --from=build /app /app
# PYTHONPATH lets every process that Ray starts import serve_app.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 YOLO_AUTOINSTALL=false YOLO_CONFIG_DIR=/tmp
USER 1000
WORKDIR /app
EXPOSE 8000
# For `docker run`; Kubernetes uses its own probes. `podman build` keeps it only with `--format docker`.
HEALTHCHECK --start-period=90s CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8000/readyz"]
LABEL org.opencontainers.image.title="image-recognition" \
      org.opencontainers.image.description="Send a photo, get named boxes: YOLOv8 behind Ray Serve" \
      org.opencontainers.image.licenses="AGPL-3.0-only"
# SageMaker starts the container with the argument `serve` or `train`; KubeRay starts Ray with its own command.
ENV SERVE_CONFIG_DIFFERENCE="{http_options: {host: 0.0.0.0}}"
ENTRYPOINT ["python", "-m", "serve_app"]
CMD ["serve"]

# `--target sagemaker`: SageMaker expects the container's user to be root, which owns /opt/ml there.
FROM service AS sagemaker
# hadolint ignore=DL3002
USER root

FROM service
USER 1000
