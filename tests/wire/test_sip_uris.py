"""Tests of `app/sip/pjsip/uri_check.py` and of the address rule, against the real PJSIP: the gateway asks about exactly
the address that was named."""

import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from app.domain.addresses import TerminalAddress, parse_address
from app.domain.errors import InvalidAddress

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60
TEXTS = 30_000
SEED = 2026
USERS = "abXY019-_.!~*'()&=+$,;?/%"
PARAMS = "abXY019-_.!~*'()[]/:&+$%"
NAMES = ["user", "transport", "ttl", "maddr", "lr", "method", "gr", "phone-context", "ext", "isub", "cic"]


def written(addresses: list[TerminalAddress]) -> list[str | None]:
    """How PJSIP writes each address; None where the gateway refuses it."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.support.pjsip_uris"],
        cwd=ROOT,
        input=json.dumps(addresses),
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    answers: list[str | None] = json.loads(process.stdout)
    return answers


def random_text(choice: random.Random) -> str:
    """A URI with many escapes of any byte, and with parameters that PJSIP knows."""

    def some(characters: str, most: int) -> str:
        chosen = (choice.choice(characters) for _ in range(choice.randint(1, most)))
        return "".join(f"%{choice.randrange(256):02X}" if char == "%" else char for char in chosen)

    start = choice.choice(
        [
            f"sip:{some(USERS, 6)}@example.com",
            f"sips:{some(USERS, 6)}@[::1]:70",
            "sip:example.com",
            "tel:+12",
            "tel:1*a",
        ]
    )
    params = [
        ";" + choice.choice([*NAMES, some(PARAMS, 3)]) + choice.choice(["", f"={some(PARAMS, 4)}", "=phone", "=1"])
        for _ in range(choice.randrange(4))
    ]
    return start + "".join(params) + (";phone-context=+1" if start == "tel:1*a" else "")


def accepted() -> set[TerminalAddress]:
    """The canonical addresses of those texts that are accepted."""
    choice = random.Random(SEED)
    found = set()
    for _ in range(TEXTS):
        try:
            found.add(parse_address(random_text(choice)))
        except InvalidAddress:
            continue
    return found


def test_each_address_is_asked_about_as_it_is() -> None:
    """PJSIP writes each accepted address as an equal one, so the presence server sees different addresses as different,
    and no address breaks a line. The worker refuses the few that PJSIP would change."""
    addresses = sorted(accepted())
    addresses_of = defaultdict(list)
    refused = []
    for address, uri in zip(addresses, written(addresses), strict=True):
        if uri is None:
            refused.append(address)
            continue
        assert re.fullmatch(r"[!-~]+", uri)
        assert '"' not in uri
        addresses_of[re.sub("%[0-9a-f]{2}", lambda escape: escape[0].upper(), uri)].append(address)
    assert [same for same in addresses_of.values() if len(same) > 1] == []
    assert len(addresses_of) > len(addresses) / 2 > 1000
    odd = re.compile(r";(lr=|ttl|maddr=|isub=|transport=)")
    assert [address for address in refused if not odd.search(address)] == []
