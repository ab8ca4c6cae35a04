"""Runs the service: on one machine (`launch.py`, `deploy.py`) and on Kubernetes (`manifests.py`, `check.py`).

`serve_config.py` reads the Serve configuration; `ray_environment.py` holds the environment variables of all Ray
processes. Nothing here runs inside a request.
"""
