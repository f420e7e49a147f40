"""What applications are owed, and how it reaches them: the outbox, its hosts, and webhooks."""
