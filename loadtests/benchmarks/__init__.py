"""Benchmarks of speed and accuracy: the engine, the service around it, decoding, batch settings, COCO accuracy."""
