"""Encryption of sinks' parameters at rest, which hold signing secrets and access tokens: AES-256-GCM.

The key file has one or two lines, each the base64 of 32 bytes: the first key encrypts, both decrypt, so that keys can
be rotated. A key's id is the beginning of its SHA-256, so a wrong key is noticed by its id.
Invariants: a ciphertext is bound to its subscription and URL, and cannot be decrypted in another row or with another
URL. So an attacker who can write the database but has no key cannot have a token sent to another URL.
"""

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.store.engines import DatabaseUnavailable
from app.store.files import OTHERS, close_command

SETTING = "TS_SECRET_KEY_FILE"
MAKE_ONE = "(umask 077; head -c 32 /dev/urandom | base64 > FILE)"

KEY_BYTES = 32
MAX_KEYS = 2
_MAX_FILE = 4096
_ID_DIGITS = 8
_NONCE_BYTES = 12  # random: NIST SP 800-38D section 8.3 allows 2^32 of them for a key


class SecretKeys:
    """The keys in the key file; without a file nothing is encrypted."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers = {hashlib.sha256(key).hexdigest()[:_ID_DIGITS]: AESGCM(key) for key in keys}
        self.ids = tuple(self._ciphers)
        """The first key encrypts."""
        self.first = self.ids[0] if self.ids else ""
        """The id of the key that encrypts; "" without a key."""

    def has(self, key_id: str) -> bool:
        """Whether this key is there."""
        return key_id in self._ciphers

    def encrypted(self, text: str, *bound_to: str) -> tuple[str, str]:
        """The text to store, and the id of the key that encrypted it ("": not encrypted)."""
        if not self.first:
            return text, ""
        nonce = os.urandom(_NONCE_BYTES)
        data = self._ciphers[self.first].encrypt(nonce, text.encode(), _bound(bound_to))
        return base64.b64encode(nonce + data).decode(), self.first

    def decrypted(self, stored: str, key_id: str, *bound_to: str) -> str | None:
        """The text; None if the key is missing, or the row was changed without the key."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            return None
        try:
            data = base64.b64decode(stored, validate=True)
            return cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(bound_to)).decode()
        except (InvalidTag, ValueError):
            return None


def _bound(to: Sequence[str]) -> bytes:
    return json.dumps(["subscription.sink_parameters", *to]).encode()


def read_keys(path: Path | None) -> SecretKeys:
    """The keys in the file; no keys without a file. Raises DatabaseUnavailable, which names the setting."""
    if path is None:
        return SecretKeys()
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise _unusable(f"{path} cannot be read: {error.strerror}. To create one, run: {MAKE_ONE}") from None
    if mode & OTHERS:
        raise _unusable(f"{path} has mode {mode:04o}, so other accounts can read it; run: {close_command(path)}")
    lines = data.splitlines() if len(data) <= _MAX_FILE else []
    keys = {line_number: line.strip() for line_number, line in enumerate(lines, start=1) if line.strip()}
    if not 1 <= len(keys) <= MAX_KEYS:
        raise _unusable(f"{path} must have one line with a key, or two lines during a rotation")
    return SecretKeys([_key(path, number, line) for number, line in keys.items()])


def _key(path: Path, number: int, line: bytes) -> bytes:
    try:
        key = base64.b64decode(line, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise _unusable(
            f"line {number} of {path} is not the base64 of {KEY_BYTES} bytes. To create one, run: {MAKE_ONE}"
        )
    return key


def _unusable(why: str) -> DatabaseUnavailable:
    return DatabaseUnavailable(f"{SETTING}: {why}")
