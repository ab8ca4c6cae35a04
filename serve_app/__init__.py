"""The image-recognition service: send a photo, get named boxes.

The path of a request:

    bytes ─► ingress        API key, limits, options          HTTP → encoded photo
          ─► Preprocessor   decode, EXIF-rotate, letterbox    encoded photo → network input, uint8 (H, W, 3)
          ─► Detector       dynamic batch, YOLO               network inputs, uint8 (H, W, 3) → candidates
          ─► Postprocessor  NMS, undo the letterbox           candidates → detections in pixels of the photo
          ─► ingress        JSON, JPEG or COCO results        detections → HTTP

Read `app.py` first: it wires the four. The arithmetic is in `vision`, which knows nothing of Ray or HTTP.
"""

__version__ = "0.1.0"
