"""Engines run the network. Each has its own module; `engine.py` defines their protocol and chooses one.

`checkpoint.py` reads a `.pt` file. Engines must not know photos, NMS or Ray.
Nothing outside this package imports torch, Ultralytics or OpenVINO.
"""
