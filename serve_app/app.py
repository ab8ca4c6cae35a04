"""The wiring: settings in, Serve application out. Read this first.

`serve_config.yaml` names `build` in its `import_path`, and says how many replicas of each deployment run.
"""

# No `from __future__ import annotations` here: Serve reads the type of `args` at run time and ignores it as a string.
from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.graph.detector import Detector
from serve_app.graph.postprocessor import Postprocessor
from serve_app.graph.preprocessor import Preprocessor
from serve_app.http.ingress import Ingress, SingleProcessIngress
from serve_app.settings import AppSettings
from serve_app.weights import loader

deployment: Any = serve.deployment  # Any, because Ray's types say that it returns the class itself


def build(args: AppSettings) -> Application:
    """Builds the graph ingress → Preprocessor → Detector → Postprocessor.

    Raises WeightsError before any replica starts if there are no weights to serve. For weights in S3, it reads only
    their manifest.
    """
    pinned = loader.pin(args.weights, args)
    size = args.image_size or pinned.image_size
    # With a user_config, even {}, Serve calls `reconfigure` at start, which loads the weights.
    if args.placement == "together":
        ingress = deployment(name="Ingress", user_config={})(serve.ingress()(SingleProcessIngress))
        together: Application = ingress.bind(args, pinned.uri, size, pinned.task)
        return together
    preprocess = deployment(Preprocessor).bind(args, size, pinned.task)
    detect = deployment(user_config={})(Detector).bind(args, pinned.uri, size, pinned.task)
    postprocess = deployment(Postprocessor).bind(args)
    apart: Application = deployment(serve.ingress()(Ingress)).bind(args, preprocess, detect, postprocess)
    return apart
