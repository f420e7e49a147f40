"""`python -m app.cli` runs the `terminal-status` command."""

from app.cli.main import main

if __name__ == "__main__":
    main()
