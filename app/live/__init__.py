"""What is watched now: terminals, subscriptions and streams in memory, and the one writer of statuses."""
