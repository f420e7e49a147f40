"""Reads addresses from standard input (a JSON list) and prints how the real PJSIP writes each; null where PJSIP refuses
one.

A separate process, since PJSIP can only be shut down by ending its process.
"""

import json
import sys

from app.sip.pjsip.endpoint import Endpoint, leave
from app.sip.pjsip.library import AddressRefused
from app.sip.pjsip.uri_check import UriCheck
from app.sip.settings import sip_configuration
from tests.support.settings import settings_for


def written(uris: UriCheck, address: str) -> str | None:
    """PJSIP's form of an address, if the gateway's check accepts it."""
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
