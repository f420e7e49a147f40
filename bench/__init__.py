"""Measures the gateway beside the libraries that it is built on, in one run (`python -m bench --help`)."""
