"""Transports over real sockets: SIP, HTTP, TLS and webhooks."""
