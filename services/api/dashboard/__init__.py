"""The dashboard: HTML pages that the gateway renders from the same data as the API."""
