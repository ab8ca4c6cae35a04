"""Pixels and boxes: decoding, letterboxing, the network, NMS and drawing.

Add a new image format to `image.py`, a new engine to `engines/`.
This package must not know Ray, HTTP or where weights come from.
"""
