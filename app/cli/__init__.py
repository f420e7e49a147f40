"""The `terminal-status` command: each command in its own file in `commands/`, and here what several commands share."""
