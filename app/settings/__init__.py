"""The settings: fields, kinds of values, and where they are read from."""
