"""API keys: reads the key file, checks the key that a call carries, and where a server needs keys.

Owns the key file, the comparison of keys, and that a server beyond this machine has keys or client
certificates. Knows no transport: every API hands it the value of its authorization header. `tls.py`
has the certificates.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from frontend.config import FrontendConfig, join_address
from frontend.errors import Code, RequestError

logger = logging.getLogger(__name__)

# Names, digests, and rights.
_Keys = Sequence[tuple[str, bytes, frozenset[str]]]

MIN_KEY_CHARS = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Characters that a header can hold; without a colon, so that NAME:KEY has one meaning.
_KEY = re.compile(r"[!-9;-~]+")
PRIORITY_RIGHT = "priority"
"""A line NAME:KEY:priority lets NAME send requests with a priority value below 0."""
KV_EVENTS_RIGHT = "kv-events"
"""A line NAME:KEY:kv-events lets NAME read which prompts the prefix cache holds, whoever's."""
RIGHTS = frozenset({PRIORITY_RIGHT, KV_EVENTS_RIGHT})
"""A line NAME:KEY:priority,kv-events gives both."""
ONLY_NAME = "default"
"""What logs call a key that came without a file."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class ApiKeys:
    """The API keys; without any every caller is accepted.

    Attributes:
        denied: calls that came without a valid key.
    """

    def __init__(self, path: Path | None = None, key: str | None = None) -> None:
        """Read the key file, or take the only key.

        Raises:
            ValueError: it cannot be used; a line for each problem, none of which shows a key.
        """
        self.denied = 0
        self._path = path
        self._keys: _Keys = ()
        if path is not None:
            self._keys = _read_keys(path)
        elif key is not None:
            self._keys = _only_key(key)

    def reload(self) -> None:
        """Read the file again; an invalid file leaves the keys as they are."""
        if self._path is None:
            return
        try:
            self._keys = _read_keys(self._path)
        except ValueError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.warning("read %s again: %d keys", self._path, len(self._keys))

    def may_raise_priority(self, name: str) -> bool:
        """Whether requests of a key may go before those of others; without keys any may."""
        return self._has_right(name, PRIORITY_RIGHT)

    def may_read_kv_events(self, name: str) -> bool:
        """Whether a key may read the tokens of cached prompts; without keys anybody may."""
        return self._has_right(name, KV_EVENTS_RIGHT)

    def _has_right(self, name: str, right: str) -> bool:
        return not self._keys or any(
            right in rights for known, _, rights in self._keys if known == name
        )

    def authenticate(self, header: str | bytes | None) -> str:
        """The name of the key in an authorization header; empty where no keys are set.

        Raises:
            RequestError: UNAUTHENTICATED; the header holds no valid key.
        """
        if not self._keys:
            return ""
        text = header.decode("latin-1") if isinstance(header, bytes) else header or ""
        scheme, _, key = text.partition(" ")
        name = self._name_of(key.strip()) if scheme.lower() == "bearer" else ""
        if name:
            return name
        self.denied += 1
        what = "the API key is not valid" if text else "no API key"
        raise RequestError(
            Code.UNAUTHENTICATED,
            f"{what}; send `authorization: Bearer KEY`",
            reason="INVALID_API_KEY" if text else "NO_API_KEY",
        )

    def _name_of(self, key: str) -> str:
        """Compares with every key, each in constant time, so that time shows nothing of a key."""
        digest, found = _digest(key), ""
        for name, known, _ in self._keys:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="backslashreplace")).digest()


def _only_key(key: str) -> _Keys:
    """A key that came without a file; as there are no others, it has all rights."""
    if problem := _problem_of(ONLY_NAME, key, frozenset()):
        raise ValueError(f"--api-key: {problem}")
    return ((ONLY_NAME, _digest(key), RIGHTS),)


def _read_keys(path: Path) -> _Keys:
    """What a file's lines NAME:KEY or NAME:KEY:RIGHT,… say. A name may have several keys, old and
    new."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"--api-key-file {path} cannot be read: {cause}") from error
    if mode & _OTHERS:  # a container's mounted secrets have such modes, and cannot be changed there
        logger.warning(
            "--api-key-file %s has mode %03o: others on this machine may read it; chmod 600 it",
            path, stat.S_IMODE(mode),
        )  # fmt: skip
    keys: dict[bytes, tuple[str, frozenset[str]]] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, key, listed = (*entry.split(":", 2), "", "")[:3]
        rights = frozenset(filter(None, listed.split(",")))
        problem = _problem_of(name, key, rights)
        if not problem and _digest(key) in keys:
            problem = f"this key is also {keys[_digest(key)][0]}'s"
        if problem:
            problems.append(f"--api-key-file {path}, line {number}: {problem}")
        else:
            keys[_digest(key)] = name, rights
    if not keys and not problems:
        problems.append(f"--api-key-file {path} has no keys; write lines NAME:KEY")
    if problems:
        raise ValueError("\n".join(problems))
    return tuple((name, digest, rights) for digest, (name, rights) in keys.items())


def _problem_of(name: str, key: str, rights: frozenset[str]) -> str:
    """The problem of a line, without the key; empty for a good line."""
    if not _NAME.fullmatch(name):
        return "the name before the colon must be 1 to 64 letters, digits, dots, dashes"
    if len(key) < MIN_KEY_CHARS:
        return f"the key of {name} has {len(key)} characters, must have at least {MIN_KEY_CHARS}"
    if not _KEY.fullmatch(key):
        return f"the key of {name} may hold printable ASCII only, no spaces, no colon"
    if unknown := sorted(rights - RIGHTS):
        known = ", ".join(sorted(RIGHTS))
        return f"the key of {name} has the right {unknown[0]!r}; there are {known}"
    return ""


def check_exposure(config: FrontendConfig) -> str:
    """Refuse an address where strangers could reach the service.

    Returns:
        A warning for the operator; empty when there is none.

    Raises:
        ValueError: other machines could reach a service without keys, or a limit of keys is set
            where there are no keys.
    """
    if config.max_requests_per_key and not config.has_keys:
        raise ValueError(
            f"--max-requests-per-key {config.max_requests_per_key} needs keys; "
            "pass --api-key-file FILE"
        )
    if is_loopback(config.host):
        return ""
    where = join_address(config.host, config.port)
    if not config.has_keys and config.tls_client_ca is None:
        if not config.insecure:
            raise ValueError(
                f"--host {config.host} can be reached from other machines, and serves any caller; "
                "pass --api-key-file FILE or --tls-client-ca FILE, or --insecure to allow it"
            )
        return f"{where} is reachable from other machines, and serves any caller (--insecure)"
    if config.tls_cert is None:
        return f"{where} is reachable from other machines, and keys and prompts travel unencrypted"
    return ""


def is_for_local_callers(config: FrontendConfig) -> bool:
    """Whether nothing but the address keeps strangers out, so that web pages must be told apart."""
    return is_loopback(config.host) and not _knows_callers(config) and not config.insecure


def has_playground(config: FrontendConfig) -> bool:
    """Whether there is a page at /: where each caller is of this machine, or has a key or a
    certificate, unless it is turned off."""
    return config.playground and (is_for_local_callers(config) or _knows_callers(config))


def _knows_callers(config: FrontendConfig) -> bool:
    return config.has_keys or config.tls_client_ca is not None


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone; of names only localhost is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
