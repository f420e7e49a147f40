"""Connections from the gateway to applications' sinks and to the identity provider."""
