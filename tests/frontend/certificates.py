"""Certificates of an authority that lives as long as a test run, made by openssl."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

from frontend.api.tls import ServerTls
from switchyard.channel import Tls


@dataclasses.dataclass(frozen=True)
class Authority:
    """Signs certificates for 127.0.0.1 and localhost; ``name`` tells authorities apart."""

    folder: Path
    name: str = "authority"

    def __post_init__(self) -> None:
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", f"/CN={self.name}", "-keyout", str(self._ca_key),
            "-out", str(self.ca),
        )  # fmt: skip

    @property
    def ca(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def _ca_key(self) -> Path:
        return self.folder / f"{self.name}-key.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a new certificate and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._ca_key),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(cert),
        )  # fmt: skip
        return cert, key

    def server(self, name: str = "server", *, client_ca: Path | None = None) -> ServerTls:
        cert, key = self.issue(name)
        return ServerTls(cert=cert, key=key, client_ca=client_ca)

    def client(self, name: str | None = None) -> Tls:
        """Of a client that trusts this authority, with a certificate of its own if named."""
        if name is None:
            return Tls(ca=self.ca)
        cert, key = self.issue(name)
        return Tls(ca=self.ca, cert=cert, key=key)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
