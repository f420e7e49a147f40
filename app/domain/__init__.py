"""Values, rules and errors that every other module uses. Pure."""
