"""The gRPC services of `proto/` and `grpc.health.v1`, a module for each. Their methods' contracts are in `proto/`.

Invariants: a method checks the request's fields, calls one use case, converts its result, and returns; errors end the
call in `OpenCalls.answer`.

Deliberately absent: business rules (`core/`), and admission of calls (`call_admission.py`).
"""
