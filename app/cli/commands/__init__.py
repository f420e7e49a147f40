"""One module for each command, or for each command group such as `clients`."""
