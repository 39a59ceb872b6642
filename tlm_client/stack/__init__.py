"""The whole service on one machine: Redis, Ray, retriever, trainer, loader and gateway, on loopback only."""
