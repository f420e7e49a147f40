"""Connections from the gateway to applications' endpoints and to the identity provider."""
