"""Programs that the bench starts as processes: baselines, callers, and the presence server with its applications."""
