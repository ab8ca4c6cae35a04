"""Traces: Serve begins a span for each request and hands its W3C context to every replica; the stages add theirs.

`tracing_config` of the Serve configuration switches it on and names `exporter`; without it nothing here costs anything.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_tracer = trace.get_tracer("serve_app")


def exporter() -> list[SpanProcessor]:
    """OTLP over HTTP, to where OpenTelemetry's own variable OTEL_EXPORTER_OTLP_ENDPOINT says; called by Serve."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # 0.1 s, only where it is used

    return [BatchSpanProcessor(OTLPSpanExporter())]


def stage(name: str, seconds: float, ago_s: float = 0.0) -> None:
    """A span of the present request, which took so long and ended so long ago."""
    end = time.time_ns() - int(ago_s * 1e9)
    _tracer.start_span(name, start_time=end - int(seconds * 1e9)).end(end)


def trace_id() -> str:
    """Of the present request, as trace viewers write it; empty when it is not traced."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else ""
