"""The `terminal-status` command: one file for each command."""
