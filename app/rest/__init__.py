"""The REST face: REST API v1, CAMARA's two APIs (`camara/`), probes, metrics, and the pages that document them.

`application.py` builds the app. Each noun of REST API v1 has a module with its routes; `schemas.py` describes what
they take and return, `to_json.py` makes the answers, `problem.py` the errors.
"""
