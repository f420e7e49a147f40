"""Terminals of other makers for system tests: each runs as a process of its own, against the tests' Kamailio."""
