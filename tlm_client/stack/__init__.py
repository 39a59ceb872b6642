"""The whole service on one machine: Redis, Ray, retriever, trainer and gateway, on loopback only."""
