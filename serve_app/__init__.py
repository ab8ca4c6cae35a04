"""The image-recognition service: send a photo, get named boxes.

One request, stage by stage:

    bytes ─► ingress        body limit, parameters           (HTTP)
          ─► Preprocessor   decode, EXIF-rotate, letterbox   bytes → uint8 (S, S, 3)
          ─► Detector       dynamic batch, YOLOv8            uint8 (N, S, S, 3) → candidate boxes
          ─► Postprocessor  NMS, undo the letterbox          candidates → boxes in the photo's pixels
          ─► ingress        JSON

Read `app.py` first: it wires the four. `image`, `model` and `boxes` know nothing of Ray or HTTP.
"""

__version__ = "0.1.0"
