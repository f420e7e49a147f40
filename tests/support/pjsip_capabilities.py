"""Sets a constant of `capabilities.py` to another value, and prints why the real PJSIP's headers are then refused;
nothing where they are not. Arguments: the constant's name, and its value in JSON.

A separate process, since PJSIP can only be shut down by ending its process.
"""

import json
import sys

from app.sip.pjsip import capabilities
from app.sip.pjsip.endpoint import Endpoint, leave
from app.sip.pjsip.library import SipStackError
from app.sip.settings import sip_configuration
from tests.support.settings import settings_for

if __name__ == "__main__":
    setattr(capabilities, sys.argv[1], json.loads(sys.argv[2]))
    try:
        capabilities.limit_capabilities(Endpoint(sip_configuration(settings_for("sip:127.0.0.1"), "test")))
    except SipStackError as error:
        print(error, flush=True)  # noqa: T201  # the answer
    leave(0)
