"""Wiring: settings in, application out. `serve_config.yaml` names `build`; read this first."""

# No `from __future__ import annotations` here: Serve reads the type of `args` at run time, and ignores a string.
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app import loader
from serve_app.deployments import Detector, Postprocessor, Preprocessor
from serve_app.ingress import Ingress, Together
from serve_app.settings import AppSettings

deployment: Any = serve.deployment  # Ray's types say that it returns the class itself


def build(args: AppSettings) -> Application:
    """The graph ingress → Preprocessor → Detector → Postprocessor; how many of each is in `serve_config.yaml`.

    Raises WeightsError before anything starts when there are no weights to serve; of S3 only their manifest is read.
    """
    pinned = loader.pin(args.weights, args)
    size = args.image_size or pinned.image_size
    # user_config {}: Serve then calls `reconfigure` at start, which loads the weights.
    if args.placement == "together":
        door = deployment(name="Ingress", user_config={})(serve.ingress()(Together))
        together: Application = door.bind(args, pinned.uri, size)
        return together
    preprocess = deployment(Preprocessor).bind(args, size)
    detect = deployment(user_config={})(Detector).bind(args, pinned.uri, size)
    postprocess = deployment(Postprocessor).bind(args)
    apart: Application = deployment(serve.ingress()(Ingress)).bind(args, preprocess, detect, postprocess)
    return apart
