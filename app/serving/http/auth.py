"""API keys: which clients may send requests. Keys come as `name:key` entries; only digests are kept, and no key is logged."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from app.serving.errors import Unauthorized

_KEY = re.compile(r"[\x21-\x7e]{16,}")


class KeysError(ValueError):
    """The keys cannot be used; the message says which line and why, without showing the key."""


class ApiKeyAuth:
    """Maps API keys to their names. Without keys, authentication is disabled."""

    def __init__(self, keys: dict[str, str]) -> None:
        """`keys`: name -> key."""
        self._digests = [(name, _digest(key)) for name, key in keys.items()]
        self.disabled = not keys  # every request is allowed

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key in X-API-Key or `Authorization: Bearer`. Raises Unauthorized if it is missing or wrong.

        Compares every key, each in constant time, so that the duration reveals nothing about the keys.
        """
        sent = _digest(_key(headers))
        found = None
        for name, digest in self._digests:
            if hmac.compare_digest(sent, digest):
                found = name
        if found is None:
            raise Unauthorized("Send a key as X-API-Key or as Authorization: Bearer.", {"www-authenticate": "Bearer"})
        return found


def read_keys(text: str | None, file: Path | None) -> dict[str, str]:
    """Keys from `name:key` entries, separated by commas in `text` and by lines in `file`; a bare key names itself key-N.

    Raises:
        KeysError: the file cannot be read, an entry is empty or short, or a name occurs twice.
    """
    entries = text.split(",") if text else []
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"The file of API keys {file} cannot be read: {_reason(error)}.") from None
        entries += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    keys: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        name, colon, key = entry.strip().partition(":")
        if not colon:
            name, key = f"key-{number}", name
        if not _KEY.fullmatch(key) or not name.isprintable():
            raise KeysError(f"API key number {number} must be NAME:KEY with a key of at least 16 visible ASCII characters.")
        if name in keys:
            raise KeysError(f"Two API keys have the name {name!r}; give each a name of its own.")
        keys[name] = key
    if file is not None and not keys:
        raise KeysError(f"The file of API keys {file} contains no key; every client would be allowed.")
    return keys


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or "" if isinstance(error, OSError) else "it is not text"


def _key(headers: Mapping[bytes, bytes]) -> str:
    """The key that was sent. If there are two, that in X-API-Key: a gateway may need Authorization for itself."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    key = headers.get(b"x-api-key", b"").strip() or (token.strip() if scheme.lower() == b"bearer" else b"")
    return key.decode("latin-1")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()
