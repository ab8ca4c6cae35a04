"""The Open Inference Protocol v2 of KServe and Triton. Requests take the same path as those of `/v1/predict`.

In: one BYTES tensor `image` of N encoded images, as base64 in JSON or unencoded in the binary extension; options are in
`parameters`. Out: one row for each object; `image_index` is the image that it belongs to. The task adds its tensors.
"""

from __future__ import annotations

import struct
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app import __version__, deadline
from serve_app.errors import MalformedRequest, NotFound
from serve_app.graph.payloads import Finished
from serve_app.http import body, json_text, request_options
from serve_app.http.predict import all_of, recognise, written
from serve_app.http.recognition_service import RecognitionService
from serve_app.http.schemas import results_of
from serve_app.http.upload import Upload, check_count
from serve_app.settings import AppSettings, PredictOptions
from serve_app.vision.tasks.by_name import TASKS
from serve_app.vision.tasks.task import Task
from serve_app.weights.identity import Weights

INPUT: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [-1]}
INDEX: dict[str, Any] = {"name": "image_index", "datatype": "INT64", "shape": [-1]}
OF_ALL_TASKS: list[dict[str, Any]] = [
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
    {"name": "class_names", "datatype": "BYTES", "shape": [-1]},
]
BINARY = "inference-header-content-length"
# Ignored. Outputs are always JSON, which the protocol allows. The others schedule a request in Triton's servers, which
# ignore what a model does not use; the deadline of a request is its `X-Request-Deadline-Ms`.
PROTOCOL_PARAMETERS = ("binary_data_output", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout")


def router(service: RecognitionService) -> APIRouter:
    """The routes around a service; `{model}` is the name of the live weights."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("/models/{model}")
    @routes.get("/models/{model}/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        live = await live_model(service, model, version)
        return {
            "name": live.name,
            "versions": [live.sha256],
            "platform": "pytorch",
            "inputs": [INPUT],
            "outputs": tensors_of(TASKS[live.task]),
        }

    @routes.get("/models/{model}/ready")
    @routes.get("/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str | None = None) -> dict[str, Any]:
        return {"name": (await live_model(service, model, version)).name, "ready": True}

    @routes.post("/models/{model}/infer", response_model=dict[str, Any])
    @routes.post("/models/{model}/versions/{version}/infer", response_model=dict[str, Any])
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        async with deadline.until(request.headers.get(deadline.HEADER), service.settings.timeout_s) as expires_at:
            live = await live_model(service, model, version)
            sent_body = await body.read(request, service.settings)
            header, images = parse(sent_body, request.headers.get(BINARY), service.settings)
            wanted = outputs(header.get("outputs"), TASKS[live.task])
            given = {k: v for k, v in (header.get("parameters") or {}).items() if k not in PROTOCOL_PARAMETERS}
            sent = Upload(images, request_options.parse(given, only_json=True))
            done = await recognise(service, request, sent, expires_at)
        return await written(sent.options, answer, header.get("id") or "", all_of(done), sent.options, wanted)

    return routes


async def live_model(service: RecognitionService, model: str, version: str | None = None) -> Weights:
    """The live weights, if they have this name and version (sha256). Raises NotFound."""
    weights = (await service.serving()).weights
    if model != weights.name or version not in (None, weights.sha256):
        raise NotFound(f"no such model: the live one is {weights.name}, version {weights.sha256}")
    return weights


def probes(service: RecognitionService) -> APIRouter:
    """The routes that a platform calls without an API key."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("")
    async def server() -> dict[str, Any]:
        return {"name": "image-recognition", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        await service.ready()
        return {"ready": True}

    return routes


def parse(content: bytes, header_length: str | None, settings: AppSettings) -> tuple[dict[str, Any], list[bytes]]:
    """Returns the request's JSON part and its images. Raises MalformedRequest or PayloadTooLarge."""
    end = int(header_length) if header_length and header_length.isdigit() else len(content)
    try:
        header: Any = json_text.load(content[:end])
        (tensor,) = header["inputs"]
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        data = [] if size else tensor["data"]
        parameters_fit = isinstance(header.get("parameters") or {}, dict)
        if tensor["datatype"] != "BYTES" or not isinstance(data, list) or not parameters_fit:
            raise MalformedRequest("`image` must be a BYTES tensor with a list as `data`, `parameters` an object")
        images = split(content[end:], size) if size else [json_text.from_base64(text) for text in flat(data)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedRequest("the body must be an inference request with one BYTES tensor of images") from error
    if not images:
        raise MalformedRequest("the tensor `image` holds no image: send at least one")
    check_count(len(images), settings)
    return header, images


def flat(data: list[Any]) -> list[str]:
    """The strings of a list, which may be nested. Raises TypeError for anything else."""
    found: list[str] = []
    for item in data:
        found += flat(item) if isinstance(item, list) else [item]
    if not all(isinstance(item, str) for item in found):
        raise TypeError("the elements of a BYTES tensor must be strings in JSON")
    return found


def split(data: bytes, size: int) -> list[bytes]:
    """Splits a binary BYTES tensor. An element is a little-endian uint32 length and its bytes. Raises ValueError."""
    if not isinstance(size, int) or len(data) != size:
        raise ValueError("the binary part does not have `binary_data_size` bytes")
    parts, at = [], 0
    while at < size:
        if at + 4 > size:
            raise ValueError("the binary part ends before an element's length")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        if at > size:
            raise ValueError("an element is longer than the binary part")
        parts.append(data[at - length : at])
    return parts


def tensors_of(task: Task) -> list[dict[str, Any]]:
    """All output tensors of a task."""
    return [INDEX, *task.tensors, *OF_ALL_TASKS]


def outputs(requested: Any, task: Task) -> list[dict[str, Any]]:  # noqa: ANN401 - whatever the JSON holds
    """The output tensors that a request asks for, in its order; all when it names none. Raises MalformedRequest."""
    if not requested:
        return tensors_of(task)
    known = {output["name"]: output for output in tensors_of(task)}
    try:
        names = [output["name"] for output in requested]
        unknown = [name for name in names if name not in known]
        parameters = {name for output in requested for name in output.get("parameters") or {}} - {"binary_data"}
    except (TypeError, KeyError, AttributeError) as error:
        raise MalformedRequest("`outputs` must be a list of objects with a `name`") from error
    if unknown or len(set(names)) < len(names):
        raise MalformedRequest(f"`outputs`: each of {', '.join(known)} may be asked for once, not {str(names)[:200]}")
    if parameters:
        raise MalformedRequest(f"`outputs`: the parameters {str(sorted(parameters))[:200]} are not supported")
    return [known[name] for name in names]


def answer(
    request_id: Any,  # noqa: ANN401 - as in the request
    done: list[Finished],
    options: PredictOptions,
    wanted: list[dict[str, Any]],
) -> Response:
    """The response: the request's id, the model and the wanted output tensors."""
    weights, task = done[0].weights, TASKS[done[0].weights.task]
    table = [(i, one) for i, image in enumerate(done) for one in results_of(image, options)]
    found = [one for _, one in table]
    columns: list[tuple[list[Any], list[int]]] = [
        ([i for i, _ in table], [len(table)]),
        *task.columns(found),
        *(([one[key] for one in found], [len(table)]) for key in ("confidence", "class", "name")),
    ]
    pairs = zip(tensors_of(task), columns, strict=True)
    tensors = [tensor | {"shape": shape, "data": data} for tensor, (data, shape) in pairs]
    by_name = {tensor["name"]: tensor for tensor in tensors}
    return JSONResponse(
        {
            "id": request_id,
            "model_name": weights.name,
            "model_version": weights.sha256,
            "outputs": [by_name[output["name"]] for output in wanted],
        }
    )
