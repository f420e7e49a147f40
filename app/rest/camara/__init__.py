"""CAMARA's APIs of release r1.2: device-reachability-status v1, device-reachability-status-subscriptions v0.8.

Invariants: unknown members of requests are ignored, as CAMARA's schemas specify. A device's identifier is returned only
to the client that sent it.

Deliberately absent: reachability by SMS, and devices identified by IP addresses, which get CAMARA's errors.
"""
