"""The TLS certificate of the HTTP port, and its private key: two PEM files, which can be read again.

The contents of the files are kept as they were read last without an error. A gateway needs the key again when it
is started again, and the files may have an error at that time.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_FILE_BYTES = 1 << 20  # a certificate with a long chain has about ten thousand bytes
_CERTIFICATE = re.compile(rb"-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")

log = logging.getLogger(__name__)


class TlsError(ValueError):
    """The certificate cannot be used. The message is one line, and repeats nothing that is in the files."""


class CertificateSource:
    """A certificate with its private key, from files that can be read again.

    The server has one, and each new gateway process gets a copy of it. So a gateway starts with the certificate
    that the server has read last without an error, whatever the files contain at that time.

    cert, key: paths of PEM files. It may be the same file. The constructor reads them and raises TlsError.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._pem = self._read()

    def __repr__(self) -> str:
        return f"<CertificateSource {self._cert}>"

    def reload(self) -> bool:
        """Read the files again, and return whether they have no error. If there is one, log it."""
        try:
            self._pem = self._read()
        except TlsError as exc:
            log.error("kept the present TLS certificate: %s", exc)
            return False
        log.info("read the TLS certificate %s", self._cert)
        return True

    def new_context(self) -> ssl.SSLContext:
        """Return a context for new connections."""
        return self._context(*self._pem)

    def _read(self) -> tuple[bytes, bytes]:
        cert, key = _read_file("tls_cert", self._cert), _read_file("tls_key", self._key)
        if not _CERTIFICATE.search(cert):
            raise TlsError(f"tls_cert {self._cert} has no certificate in PEM format")
        if not _KEY.search(key):
            raise TlsError(f"tls_key {self._key} has no private key in PEM format")
        try:
            self._context(cert, key)
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                raise TlsError(f"tls_key {self._key} is not the key of the certificate {self._cert}") from exc
            reason = (exc.reason or "the PEM data is damaged").lower().replace("_", " ")
            raise TlsError(f"cannot use tls_cert {self._cert} with tls_key {self._key}: {reason}") from exc
        return cert, key

    def _context(self, cert: bytes, key: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION  # otherwise each costs the server much more than the caller
        context.set_alpn_protocols(["http/1.1"])
        with _file_in_memory(cert) as cert_path, _file_in_memory(key) as key_path:
            context.load_cert_chain(cert_path, key_path, password=self._refuse_password)
        return context

    def _refuse_password(self) -> str:
        # Without this function, OpenSSL would ask for the password on the terminal.
        raise TlsError(f"tls_key {self._key} is protected by a password: give a key without one")


def _read_file(name: str, path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe could stop the server until somebody writes
            raise TlsError(f"cannot read {name} {path}: it is not a regular file")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TlsError(f"cannot read {name} {path}: it has more than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as exc:
        raise TlsError(f"cannot read {name} {path}: {exc.strerror}") from exc


@contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Return the path of a file that is on no disk: Python's ssl module reads keys only from files."""
    descriptor = os.memfd_create("tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
