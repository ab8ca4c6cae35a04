"""Every error that a client or an operator may see.

    bytes ──decode──► image ──letterbox──► network input ──engine──► candidates ──NMS──► detections

    AppError                      status  code                      raised by
    ├── MalformedRequest             400  malformed_request         ingress: body or encoding
    ├── CorruptImage                 400  corrupt_image             decode: damaged, empty or cut off
    ├── Unauthorized                 401  unauthorized              ingress: no API key
    ├── Forbidden                    403  forbidden                 ingress: an unknown API key
    ├── NotFound                     404  not_found                 ingress: no such path or model
    ├── UploadTooSlow                408  upload_too_slow           ingress: the body arrives too slowly
    ├── PayloadTooLarge              413  payload_too_large         ingress: bytes, images
    ├── ImageTooLarge                413  image_too_large           decode: pixels, from the header alone
    ├── ImageTooComplex              413  image_too_complex         decode: frames, JPEG scans, time
    ├── UnsupportedFormat            415  unsupported_format        ingress: content type; decode: image format
    ├── InvalidParameter             422  invalid_parameter         ingress: options, the deadline header
    ├── ImageQuarantined             422  image_quarantined         ingress: two processes died with this image in hand
    ├── TooManyRequests              429  too_many_requests         ingress: requests of one API key at a time
    ├── SourceUnavailable            424  source_unavailable        ingress: an image URL that returns no image
    ├── Overloaded                   503  overloaded                a queue is full
    ├── NotReady                     503  not_ready                 a stage is loading or has no replica
    └── Timeout                      504  timeout                   no answer in time

The message of an AppError reaches the client: it names what is wrong, the limit, and what to do. Any other exception
becomes 500 `internal_error`, whose text reveals nothing. Arguments are positional and go to `super().__init__`,
because pickle carries exceptions between processes. Must not know HTTP beyond its status codes.
"""

from __future__ import annotations

from http import HTTPStatus


class AppError(Exception):
    """Base of all errors that a client sees: `status` for HTTP, `code` for programs, the message for people."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal_error"
    retry_after_s: int | None = None


class MalformedRequest(AppError):
    status, code = HTTPStatus.BAD_REQUEST, "malformed_request"


class CorruptImage(AppError):
    status, code = HTTPStatus.BAD_REQUEST, "corrupt_image"


class Unauthorized(AppError):
    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"


class Forbidden(AppError):
    status, code = HTTPStatus.FORBIDDEN, "forbidden"


class NotFound(AppError):
    status, code = HTTPStatus.NOT_FOUND, "not_found"


class UploadTooSlow(AppError):
    status, code = HTTPStatus.REQUEST_TIMEOUT, "upload_too_slow"


class PayloadTooLarge(AppError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload_too_large"


class ImageTooLarge(AppError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_large"


class ImageTooComplex(AppError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_complex"


class UnsupportedFormat(AppError):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_format"


class InvalidParameter(AppError):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameter"


class ImageQuarantined(AppError):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "image_quarantined"


class SourceUnavailable(AppError):
    status, code = HTTPStatus.FAILED_DEPENDENCY, "source_unavailable"


class TooManyRequests(AppError):
    status, code, retry_after_s = HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests", 1


class Overloaded(AppError):
    status, code, retry_after_s = HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", 1


class NotReady(AppError):
    status, code, retry_after_s = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", 5


class Timeout(AppError):
    status, code = HTTPStatus.GATEWAY_TIMEOUT, "timeout"


class WeightsError(Exception):
    """Weights that cannot be served. Raised at start; `/v1/models` shows it when a swap is refused.

    `reason` is for programs, the message for the operator.
    """

    reason = "invalid"


class MissingWeights(WeightsError):
    """The file, bucket, object or version does not exist, or was never published."""

    reason = "missing"


class DeniedWeights(WeightsError):
    """The store denies access."""

    reason = "denied"


class UnreachableStore(WeightsError):
    """The store, or the weights holder, does not answer."""

    reason = "unreachable"


class UnwritableCache(WeightsError):
    """The folder for weights from S3 has no room, or cannot be written."""

    reason = "unwritable"


class DamagedWeights(WeightsError):
    """The bytes differ from those that were pinned."""

    reason = "damaged"


class UnsafeWeights(WeightsError):
    """The file is not a checkpoint that can be loaded without running its code."""

    reason = "unsafe"


class WrongWeights(WeightsError):
    """The classes differ from the manifest or have no names; the size is not the service's; the photos are not RGB."""

    reason = "wrong"


class NotFinite(WeightsError):
    """The network returns numbers that are not finite."""

    reason = "not_finite"


class OutOfMemory(WeightsError, RuntimeError):
    """The network, or a larger batch, does not fit into the free memory of the GPU.

    A RuntimeError too, so that a replica survives when a new `max_batch_size` does not fit.
    """

    reason = "out_of_memory"


class Imprecise(WeightsError):
    """On the GPU the network does not find what it finds in float32 on the CPU."""

    reason = "imprecise"


class GoldenFailed(WeightsError):
    """The network does not find the objects of the golden set, or takes too long."""

    reason = "golden"


class CommandFailed(Exception):
    """A command cannot do what was asked. The message says why, in one line."""
