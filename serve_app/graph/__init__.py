"""The three stages as Ray Serve deployments, batch admission, and live weights.

Read `preprocessor.py`, `detector.py`, `postprocessor.py` in this order; `payloads.py` defines what they pass on.
Must not know HTTP. The arithmetic on images and boxes is in `vision`.
"""
