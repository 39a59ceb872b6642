"""The dashboard: pages for people over the same parts as the API, rendered on the server."""
