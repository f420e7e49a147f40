"""The rows of the bench, a module for each group. Each has `ROWS` (names) and `measure(run)`, which returns rows."""
