"""Values, rules and errors: what every other module talks in. Pure."""
