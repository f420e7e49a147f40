"""Measures the gateway against the bare PJSIP fetch loop, side by side in one run (`python -m bench --help`)."""
