"""What a network's head means: detect, segment, pose, obb, classify.

Add a new task as a module of its own and a line in `by_name.py`. This package uses NumPy and OpenCV and must not know
the engine, Ray or HTTP.
"""
