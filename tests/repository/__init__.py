"""What holds for the repository: layers, generated files, documentation, the package, the bench."""
