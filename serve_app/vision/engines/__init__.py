"""Engines run the network. Each has its own module; `engine.py` defines their protocol and chooses one.

`checkpoint.py` reads a `.pt` file; `layers.py` has what may be in it. Engines must not know photos, NMS or Ray.
Nothing outside this package imports torch, Ultralytics or OpenVINO.
"""
