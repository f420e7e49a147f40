"""What runs in the child process: fetches, watches, and the RFC 6665 state machine."""
