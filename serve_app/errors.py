"""Everything that can go wrong, and what the client is told.

    bytes ──decode──► image ──letterbox──► batch ──engine──► boxes

    AppError                      status  code                      raised by
    ├── MalformedRequest             400  malformed_request         ingress: body or encoding
    ├── CorruptImage                 400  corrupt_image             decode: damaged, empty or cut off
    ├── PayloadTooLarge              413  payload_too_large         ingress: bytes, files
    ├── ImageTooLarge                413  image_too_large           decode: pixels, before they are decoded
    ├── UnsupportedFormat            415  unsupported_format        ingress: content type; decode: image format
    ├── InvalidParameter             422  invalid_parameter         ingress
    ├── Overloaded                   503  overloaded                a queue is full
    ├── NotReady                     503  not_ready                 a stage is not up yet
    └── Timeout                      504  timeout                   no answer in time

Anything else becomes 500 `internal_error`, whose text tells nothing but the request id. The message of an AppError
reaches the client. All arguments are positional and go to `super().__init__`, because exceptions cross processes
by pickle.
"""

from __future__ import annotations

from http import HTTPStatus


class AppError(Exception):
    """Base of all errors a client is told about: `status` for HTTP, `code` for programs, the message for people."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal_error"
    retry_after_s: int | None = None


class MalformedRequest(AppError):
    status, code = HTTPStatus.BAD_REQUEST, "malformed_request"


class CorruptImage(AppError):
    status, code = HTTPStatus.BAD_REQUEST, "corrupt_image"


class PayloadTooLarge(AppError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload_too_large"


class ImageTooLarge(AppError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_large"


class UnsupportedFormat(AppError):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_format"


class InvalidParameter(AppError):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_parameter"


class Overloaded(AppError):
    status, code, retry_after_s = HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", 1


class NotReady(AppError):
    status, code, retry_after_s = HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", 5


class Timeout(AppError):
    status, code = HTTPStatus.GATEWAY_TIMEOUT, "timeout"


class WeightsError(Exception):
    """Weights are missing, damaged or not what they should be: an operator's error, raised at start."""
