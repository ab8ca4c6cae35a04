"""Ray's own switches, as environment variables of every process of the service. Set before Ray is imported.

Dockerfile and manifests must set the same ones.
"""

from __future__ import annotations

SWITCHES = {
    # In Serve's HTTP proxy (and in a replica's server, where HAProxy is the front), before Serve looks at a request.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy:middlewares",
    # Ray starts workers at niceness 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
}
# Not RAY_SERVE_ENABLE_HA_PROXY, though it is faster (loadtests/RESULTS.md): two of about 40 starts failed, as HAProxy's
# first reload could not bind its statistics port; and its fallback port is shared by all services of a machine.
