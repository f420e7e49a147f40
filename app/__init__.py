"""Terminal status gateway: an IMS watcher that answers whether a SIP terminal is reachable, unreachable or busy."""
