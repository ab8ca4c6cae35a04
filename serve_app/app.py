"""Wiring: settings in, application out. `serve_config.yaml` names `build`; read this first."""

# No `from __future__ import annotations` here: Serve reads the type of `args` at run time, and ignores a string.
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app import weights
from serve_app.deployments import Detector, Postprocessor, Preprocessor
from serve_app.ingress import Ingress
from serve_app.settings import AppSettings

deployment: Any = serve.deployment  # Ray's types say that it returns the class itself


def build(args: AppSettings) -> Application:
    """The graph ingress → Preprocessor → Detector → Postprocessor; how many of each is in `serve_config.yaml`.

    Raises WeightsError before anything starts when there are no weights to serve.
    """
    path = weights.find(args.weights)
    size = args.image_size or weights.image_size(path)
    preprocess = deployment(Preprocessor).bind(args, size)
    detect = deployment(Detector).bind(args, path, size)
    postprocess = deployment(Postprocessor).bind(args)
    application: Application = deployment(serve.ingress()(Ingress)).bind(args, preprocess, detect, postprocess)
    return application
