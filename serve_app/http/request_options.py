"""The options of one request: parsed, and held against the task and the classes of the weights that answered."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from serve_app.errors import InvalidParameter, MalformedRequest
from serve_app.http import json_text
from serve_app.settings import MAX_CLASSES, PredictOptions
from serve_app.vision.tasks.by_name import TASKS
from serve_app.weights.identity import Weights

MAX_OPTIONS = len(PredictOptions.model_fields)


def parse(given: dict[str, Any], only_json: bool = False) -> PredictOptions:
    """Validates the options. Raises InvalidParameter, with `only_json` also for another `format`.

    `classes` is a list of ids and names, or text like `0,bus`. `conf` is a number, or a mapping from ids and names to
    numbers, which may be JSON text.
    """
    if len(given) > MAX_OPTIONS:
        raise InvalidParameter(f"the request has {len(given)} options, only {len(PredictOptions.model_fields)} exist")
    values = dict(given)
    classes, conf = values.get("classes"), values.get("conf")
    if isinstance(classes, str):
        values["classes"] = [c.strip() for c in classes.split(",", MAX_CLASSES + 1)] if classes else None
    if isinstance(conf, str) and conf.lstrip().startswith("{"):
        try:
            values["conf"] = json_text.load(conf.encode(errors="replace"))
        except MalformedRequest as error:
            raise InvalidParameter(f"`conf`: is neither a number nor a JSON object: {error}") from error
    for name in ("classes", "conf"):
        if isinstance(values.get(name), list | dict) and len(values[name]) > MAX_CLASSES:
            raise InvalidParameter(f"`{name}`: must not have more than {MAX_CLASSES} classes")
    try:
        options = PredictOptions.model_validate(values)
    except ValidationError as error:
        problems = (f"`{str(e['loc'][0])[:40]}`: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise InvalidParameter("; ".join(problems)) from error
    check_together(options)
    if only_json and options.format != "json":
        raise InvalidParameter("`format`: this protocol has one format only, /v1/predict has others")
    return options


def check_together(options: PredictOptions) -> None:
    """Raises InvalidParameter for an option that has no effect beside the others."""
    if options.retina_masks and not options.masks:
        raise InvalidParameter("`retina_masks`: there are no masks, as `masks` is false")
    if options.retina_masks and options.tile:
        raise InvalidParameter("`retina_masks`: not with `tile`, whose outlines have the resolution of the tiles")
    if not options.tile and (idle := {"overlap", "tile_merge"} & options.model_fields_set):
        raise InvalidParameter(f"`{min(idle)}`: there are no tiles, as `tile` is not set")


def check(options: PredictOptions, weights: Weights) -> None:
    """Raises InvalidParameter for an option of another task, or a class that the weights do not have."""
    name, task, names = weights.name, TASKS[weights.task], weights.class_names
    if others := sorted(options.model_fields_set - task.options):
        having = ", ".join(other.name for other in TASKS.values() if others[0] in other.options)
        raise InvalidParameter(f"`{others[0]}`: only {having} has this option, the task of {name} is {task.name}")
    if options.format == "coco" and not task.in_coco:
        raise InvalidParameter(f"`format`: COCO has none for the task of {name}, {task.name}")
    wanted = {"classes": options.classes or (), "conf": options.conf if isinstance(options.conf, dict) else ()}
    for option, classes in wanted.items():
        unknown = [k for k in classes if (k >= len(names) if isinstance(k, int) else k not in names)]
        if unknown:
            first = f"id {unknown[0]}" if isinstance(unknown[0], int) else f"name {unknown[0]!r}"
            raise InvalidParameter(
                f"`{option}`: {name} has no class with the {first}: "
                f"its ids are 0 to {len(names) - 1}, /v1/models has their names"
            )
