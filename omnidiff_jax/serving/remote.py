"""Media by URL: fetched from hosts that the server was told to trust, and from nowhere else."""

import dataclasses
import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urlsplit

from omnidiff_jax.serving.failures import Failure

_SECONDS = 20.0
_PIECE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Trusted:
    """Hosts that may be asked.

    Attributes:
        hosts: their names, exactly; none by default.
    """

    hosts: tuple[str, ...] = ()

    def fetch(self, url: str, param: str, most: int) -> bytes:
        """What lies at an https URL of a trusted host. Redirects are not followed, and private addresses not asked:
        the name is looked up once, and the address that was checked is the one that is asked.

        Raises:
            Failure: another host or scheme, an address within, a redirect, more than `most` bytes, or no answer.
        """
        host, place = self._place(url, param)
        address = _public(host, param)
        connection = _Pinned(host, address)
        until = time.monotonic() + _SECONDS
        try:
            connection.request("GET", place, headers={"Accept": "*/*", "User-Agent": "omnidiff"})
            response = connection.getresponse()
            if response.status != 200:
                raise Failure(
                    f"{param}: {host} answered {response.status}; give the URL of the file itself", param=param
                )
            content = bytearray()
            while piece := response.read(_PIECE):
                content += piece
                if len(content) > most:
                    raise Failure(f"{param}: the file is over the limit of {most} bytes", status=413, param=param)
                if time.monotonic() > until:
                    raise Failure(f"{param}: {host} took longer than {_SECONDS:g} s", param=param)
            return bytes(content)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"{param}: {host} cannot be read ({type(error).__name__})", param=param) from error
        finally:
            connection.close()

    def _place(self, url: str, param: str) -> tuple[str, str]:
        """Host and path, if they may be asked."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise Failure(f"{param} is no URL", param=param) from error
        if parts.scheme != "https" or port not in (None, 443) or parts.username is not None or host not in self.hosts:
            known = f"https URLs of {', '.join(self.hosts)}, or " if self.hosts else ""
            raise Failure(f"{param}: URLs are not fetched; send {known}a data: URL", param=param, code="url_refused")
        place = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not place.isascii() or any(character <= " " for character in place):
            raise Failure(f"{param} holds characters that must be percent-encoded", param=param)
        return host, place


def _public(host: str, param: str) -> str:
    """An address of a host that lies outside.

    Raises:
        Failure: none, or one of them lies within.
    """
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise Failure(f"{param}: {host} is not known", param=param) from error
    for address in found:
        if not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise Failure(f"{param}: {host} lies within a private network", param=param, code="url_refused")
    return found[0]


class _Pinned(http.client.HTTPSConnection):
    """HTTPS to a host at one address."""

    def __init__(self, host: str, address: str):
        super().__init__(host, timeout=_SECONDS, context=ssl.create_default_context())
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address, 443), self.timeout)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)  # type: ignore[attr-defined]
