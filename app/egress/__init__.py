"""Everything that connects to applications' endpoints."""
