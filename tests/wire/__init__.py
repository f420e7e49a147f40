"""Transports: SIP, HTTP, TLS and webhooks over real sockets."""
