"""Whole gateways, with real presence servers, kills, signals, and clients of other makers."""
