"""The least confidence of each class that a request asks for, by the names of the weights that answer it."""

from __future__ import annotations

import numpy as np

from serve_app.settings import PredictOptions
from serve_app.vision.boxes import Floats


def of(options: PredictOptions, names: tuple[str, ...], default: float) -> Floats:
    """Float32 (C,), one for each class id; infinity for classes that are not to be reported.

    `default` is that of the task.

    Ignores classes that the weights do not have: the ingress refuses them once it knows the weights.
    """
    conf = options.conf if "conf" in options.model_fields_set else default
    if isinstance(conf, dict):  # an id goes before a name
        least = np.array([conf.get(i, conf.get(name, default)) for i, name in enumerate(names)], np.float32)
    else:
        least = np.full(len(names), conf, np.float32)
    if options.classes is not None:
        least[[i for i, name in enumerate(names) if not {i, name} & options.classes]] = np.inf
    return least
