"""Rules without I/O: thousands of cases in milliseconds."""
