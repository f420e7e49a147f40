"""Commands of `terminal-status`, a module for each group; `cli.py` puts them together."""
