"""What the training engine's speed and exactness claims rest on. `python -m benchmarks.training` runs them all."""
