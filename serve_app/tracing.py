"""Tracing with OpenTelemetry: Serve starts a span for each request and passes its context on; the stages add spans.

`tracing_config` in the Serve configuration enables it and names `exporter`. Without it, spans cost nothing. Must not
know Ray.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_tracer = trace.get_tracer("serve_app")


def exporter() -> list[SpanProcessor]:
    """Exports spans by OTLP over HTTP, to OTEL_EXPORTER_OTLP_ENDPOINT. Serve calls this."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # 0.1 s, so only where used

    return [BatchSpanProcessor(OTLPSpanExporter())]


def add_span(name: str, seconds: float, ago_s: float = 0.0) -> None:
    """Adds a span to the current request: it took `seconds` and ended `ago_s` seconds ago."""
    end = time.time_ns() - int(ago_s * 1e9)
    _tracer.start_span(name, start_time=end - int(seconds * 1e9)).end(end)


def trace_id() -> str:
    """The current request's trace id, 32 hexadecimal digits; empty if the request is not traced."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else ""
