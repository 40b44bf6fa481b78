"""Which other machines may be asked, and how their addresses are shown.

What a catalogue names, others wrote: an address in it may point into the network of whoever reads
it. So every request and every redirect is checked against a list of hosts, and the address that a
name led to is checked when the connection stands, where no second look-up can change it.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from s2pairs.errors import SourceError

PORTS = {"http": 80, "https": 443}
_USER = re.compile(r"(?<=//)[^/?#\s]*@")
_QUERY = re.compile(r"\?[^\s'\")>]+")
_LONGEST_SHOWN = 200

Host = tuple[str, int]
"""Name in small letters and port."""


@dataclass(frozen=True)
class Reach:
    """The hosts that may be asked.

    `public` ones are reached by https at public addresses alone. `trusted` ones were named by the
    user: also by http, also at private addresses. Names are with port, 443 unless said.
    """

    public: frozenset[Host]
    trusted: frozenset[Host]

    @classmethod
    def of(cls, *starts: str, known: Iterable[str] = (), told: Iterable[str] = ()) -> "Reach":
        """`starts` are URLs that the user gave, `known` and `told` are hosts as `name[:port]`.

        An address or `localhost` in a URL was meant as it stands. A name was not: it may be bent
        to a private address, and is trusted only if it is `told` too.
        """
        public = {_host(f"https://{name}") for name in known}
        trusted = {_host(f"{scheme}://{name}") for name in told for scheme in PORTS}
        for host in map(_host, starts):
            (trusted if _is_literal(host[0]) else public).add(host)
        return cls(frozenset(public), frozenset(trusted))

    def check_url(self, url: str) -> None:
        """`SourceError` unless this URL may be asked."""
        scheme, host = urlsplit(url).scheme.lower(), _host(url)
        if scheme not in PORTS:
            raise SourceError(
                f"{shown(url)} is not read: expected https, got {scheme or 'nothing'}"
            )
        if host in self.trusted:
            return
        named = host[0] if host[1] in PORTS.values() else f"{host[0]}:{host[1]}"
        if host not in self.public:
            known = ", ".join(sorted({name for name, _ in self.public | self.trusted})) or "none"
            raise SourceError(
                f"{shown(url)} is not asked: only {known} may be; if you trust {named}, add "
                f"--allow-host {named}"
            )
        if scheme != "https":
            raise SourceError(
                f"{shown(url)} is not asked without https; if you trust {named}, add "
                f"--allow-host {named}"
            )

    def check_peer(self, host: str, port: int, address: str) -> None:
        """`SourceError` if a host that the user did not name has led to a private address."""
        if (host.lower(), port) in self.trusted:
            return
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        if not (mapped or found).is_global:
            raise SourceError(
                f"{host} leads to {address}, a private address; if you trust it, add "
                f"--allow-host {host}"
            )


def _host(url: str) -> Host:
    try:
        parts = parse_url(url)
        port = parts.port or PORTS.get((parts.scheme or "").lower(), 0)
        name = (parts.host or "").lower().strip("[]")
    except LocationParseError as error:
        raise SourceError(f"{shown(url)!r} is not a URL: {error}") from error
    return name, port


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def shown(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """An address, or a sentence that holds some, fit to be printed and published.

    Without user names, passwords and queries, which are keys to some stores; cut where it is long.
    """
    return _QUERY.sub("?…", _USER.sub("", text))[:longest]
