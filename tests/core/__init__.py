"""The use cases, the store and delivery, with real databases."""
