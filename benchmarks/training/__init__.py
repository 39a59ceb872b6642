"""Benchmarks of the training engine. `python -m benchmarks.training` runs all of them."""
