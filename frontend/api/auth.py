"""Who may ask: API keys, what one key may have live at once, and where it is safe to listen.

Owns the key file and the comparison of keys. Knows no transport: both faces hand it the value of
their authorization header. Certificates are `frontend.api.tls`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from frontend.config import FrontendConfig, join_address
from frontend.errors import Code, RequestError

logger = logging.getLogger(__name__)

MIN_KEY_CHARS = 16
KEY_LIMIT_RETRY_SECONDS = 1.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What a header can hold; without a colon, so that NAME:KEY has one meaning.
_KEY = re.compile(r"[!-9;-~]+")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Access:
    """The keys of those who may ask; without a key file everybody may.

    Attributes:
        denied: calls that came without a valid key.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the key file.

        Raises:
            ValueError: it cannot be used; a line for each problem, none of which shows a key.
        """
        self.denied = 0
        self._path = path
        self._keys = () if path is None else _read_keys(path)

    def reload(self) -> None:
        """Read the file again; one that cannot be used leaves the keys as they are."""
        if self._path is None:
            return
        try:
            self._keys = _read_keys(self._path)
        except ValueError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.warning("read %s again: %d keys", self._path, len(self._keys))

    def authenticate(self, header: str | bytes | None) -> str:
        """The name of the key in an authorization header; empty where no keys are set.

        Raises:
            RequestError: UNAUTHENTICATED; the header holds no valid key.
        """
        if self._path is None:
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
        """Compares with every key, each in constant time: nothing of a key shows in the time."""
        digest, found = _digest(key), ""
        for name, known in self._keys:
            if hmac.compare_digest(digest, known):
                found = name
        return found


class KeyLimit:
    """Bounds the live requests of each key.

    Args:
        most: of one key; 0 is any number. Callers without a key have no bound.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self._live: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Count one request of ``key`` as live.

        Raises:
            RequestError: RESOURCE_EXHAUSTED; the key has as many as it may.
        """
        if not self.most or not key:
            yield
            return
        if self._live[key] >= self.most:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"key {key} has {self._live[key]} live requests, and may have {self.most}; "
                "wait for one to end",
                reason="KEY_LIMIT",
                retry_after=KEY_LIMIT_RETRY_SECONDS,
            )
        self._live[key] += 1
        try:
            yield
        finally:
            self._live[key] -= 1
            if not self._live[key]:
                del self._live[key]


def check_exposure(config: FrontendConfig) -> str:
    """Refuse to listen where strangers could ask.

    Returns:
        A line that the operator should read; empty when there is nothing to say.

    Raises:
        ValueError: other machines could ask and nothing would stop them, or a limit of keys is
            set where there are no keys.
    """
    if config.max_requests_per_key and config.api_key_file is None:
        raise ValueError(
            f"--max-requests-per-key {config.max_requests_per_key} needs keys; "
            "pass --api-key-file FILE"
        )
    if is_loopback(config.host):
        return ""
    where = join_address(config.host, config.port)
    if config.api_key_file is None and config.tls_client_ca is None:
        if not config.insecure:
            raise ValueError(
                f"--host {config.host} can be reached from other machines, and anybody could ask; "
                "pass --api-key-file FILE or --tls-client-ca FILE, or --insecure to allow it"
            )
        return f"{where} is reachable from other machines, and anybody may ask (--insecure)"
    if config.tls_cert is None:
        return f"{where} is reachable from other machines, and keys and prompts travel unencrypted"
    return ""


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine alone; of names only localhost is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="backslashreplace")).digest()


def _read_keys(path: Path) -> Sequence[tuple[str, bytes]]:
    """Names and digests of a file's lines NAME:KEY. A name may have several keys, old and new."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"--api-key-file {path} cannot be read: {cause}") from error
    if mode & _OTHERS:  # secrets that a container mounts are so, and cannot be changed there
        logger.warning(
            "--api-key-file %s has mode %03o: others on this machine may read it; chmod 600 it",
            path, stat.S_IMODE(mode),
        )  # fmt: skip
    keys: dict[bytes, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, _, key = entry.partition(":")
        problem = _problem_of(name, key)
        if not problem and _digest(key) in keys:
            problem = f"this key is also {keys[_digest(key)]}'s"
        if problem:
            problems.append(f"--api-key-file {path}, line {number}: {problem}")
        else:
            keys[_digest(key)] = name
    if not keys and not problems:
        problems.append(f"--api-key-file {path} has no keys; write lines NAME:KEY")
    if problems:
        raise ValueError("\n".join(problems))
    return tuple((name, digest) for digest, name in keys.items())


def _problem_of(name: str, key: str) -> str:
    """What is wrong with a line, without the key; empty when nothing is."""
    if not _NAME.fullmatch(name):
        return "the name before the colon must be 1 to 64 letters, digits, dots, dashes"
    if len(key) < MIN_KEY_CHARS:
        return f"the key of {name} has {len(key)} characters, must have at least {MIN_KEY_CHARS}"
    if not _KEY.fullmatch(key):
        return f"the key of {name} may hold printable ASCII only, no spaces, no colon"
    return ""
