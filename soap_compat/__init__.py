"""The Parlay X Terminal Status face: SOAP 1.1 over HTTP (3GPP TS 29.199-8, ETSI ES 202 391-8).

Invariants: the only place that knows XML of Parlay X, and the only place that imports Spyne. Importing it leaves
the process as it was: what Spyne does to the interpreter while it is imported is undone here.

Deliberately absent: use cases (`app.core.fetcher`), and anything that blocks the event loop.
"""

import collections.abc
import sys
import warnings

# The one module that Spyne looks for by the import hook of its own `six`, which Python 3.12 no longer asks.
sys.modules["spyne.util.six.moves.collections_abc"] = collections.abc

with warnings.catch_warnings():
    # Spyne 2.14 carries a `six` from before importlib's find_spec, of which Python 3.11 warns.
    warnings.filterwarnings("ignore", "_SixMetaPathImporter", ImportWarning)
    import spyne.server  # noqa: F401 - imported here so that no other module is the first to import Spyne

# Its import hook would stay behind and turn every later failing `import` of this process into an ImportWarning.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "spyne.util.six"]
