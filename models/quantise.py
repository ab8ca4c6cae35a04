"""`python -m models.quantise`: writes what int8 needs to know of the bundled model into `default.json`.

Do it again when the versions of OpenVINO or torch change: they name the tensors.
"""

from serve_app.weights import quantisation
from serve_app.weights.identity import BUNDLED, pin_file

if __name__ == "__main__":
    pinned = pin_file(str(BUNDLED))
    given = pinned.manifest
    if not given or not (made := quantisation.for_manifest(pinned.uri, given.golden, pinned.image_size)):
        raise SystemExit("the bundled model has no manifest, or this CPU has no VNNI")
    text = given.model_copy(update={"int8": made}).model_dump_json(indent=1, exclude_defaults=True)
    BUNDLED.with_suffix(".json").write_text(f"{text}\n")
