"""Prints how the real PJSIP writes each address of standard input, a JSON list: a list with null where it refuses one.

A process of its own, since PJSIP can only be left by ending the process.
"""

import json
import sys

from app.sip.pjsip.endpoint import Endpoint, leave
from app.sip.pjsip.library import AddressRefused
from app.sip.pjsip.uri_check import UriCheck
from app.sip.settings import sip_configuration
from tests.support.settings import settings_for


def written(uris: UriCheck, address: str) -> str | None:
    """What the check lets pass."""
    try:
        uris.check(address)
    except AddressRefused:
        return None
    return uris.written(address)


if __name__ == "__main__":
    endpoint = Endpoint(sip_configuration(settings_for("sip:127.0.0.1"), "test"))
    uris = UriCheck(endpoint)
    print(json.dumps([written(uris, address) for address in json.load(sys.stdin)]), flush=True)  # noqa: T201  # the answer
    leave(0)
