"""Terminal status gateway: an IMS watcher that answers whether a SIP terminal is reachable, unreachable or busy."""

VERSION = "0.1.0"
"""As in pyproject.toml; a test holds it so."""
