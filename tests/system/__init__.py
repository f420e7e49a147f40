"""Whole gateways: real presence servers, kills, signals, other people's clients."""
