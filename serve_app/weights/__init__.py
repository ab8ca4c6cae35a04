"""Weights: their identity, where they are stored, the checks before they serve, and how two of them differ.

`loader.py` takes an address to an engine, step by step. Add a new reason to refuse weights there.
This package must not know Ray, replicas or HTTP.
"""
