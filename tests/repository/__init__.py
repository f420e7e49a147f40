"""Tests of the repository as a whole: layers, generated files, documentation, the package, the bench."""
