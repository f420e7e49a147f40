"""The Parlay X Terminal Status face: SOAP 1.1 over HTTP (3GPP TS 29.199-8, ETSI ES 202 391-8).

`server.py` answers HTTP. `interface.py` answers one SOAP request: it authenticates the caller (`authentication.py`),
reads the envelope (`request_envelope.py`, `part_reader.py`), runs an operation (`operations.py`), and writes the
response (`envelope_writer.py`) or a fault (`faults.py`: how an error looks on this face). `callbacks.py` calls
applications.

Invariants: only this package knows Parlay X's XML, and only it imports Spyne. Importing it leaves the interpreter as it
was: the changes that Spyne makes are undone here.

Deliberately absent: use cases (`app/core/`), and anything that blocks the event loop.
"""

import collections.abc
import sys
import warnings

# Spyne imports this one module through the import hook of its bundled `six`, which Python 3.12 no longer calls.
sys.modules["spyne.util.six.moves.collections_abc"] = collections.abc

with warnings.catch_warnings():
    # Python 3.11 warns that the `six` bundled with Spyne 2.14 lacks importlib's find_spec.
    warnings.filterwarnings("ignore", "_SixMetaPathImporter", ImportWarning)
    import spyne  # noqa: F401 - imported here so that no other module is the first to import Spyne

# Spyne's import hook would turn every later failing `import` of this process into an ImportWarning.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "spyne.util.six"]
