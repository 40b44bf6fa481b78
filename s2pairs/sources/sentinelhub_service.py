"""Sentinel Hub as a service on the net: its end points, tokens, and how requests are sent.

The package `sentinelhub` makes requests, with its own configuration; they are sent by our session,
for the package waits for ever on a 429, gives up on a token that died, and misreads dates.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, final

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.reach import Reach
from s2pairs.sources.web import LARGEST_TEXT, Answer, Patience, Web

if TYPE_CHECKING:
    from sentinelhub import SHConfig

_CDSE_BASE = "https://sh.dataspace.copernicus.eu"
_CDSE_TOKEN = (
    "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
)
_MOST_PAGES = 1_000  # of a search for one tile


@dataclass(frozen=True)
class EndPoints:
    """Where the service is: what goes to other processes, which read credentials for themselves."""

    base_url: str
    token_url: str


def end_points(service: str) -> EndPoints:
    """Those of `cdse`, else of the package's configuration; `SourceError` without credentials."""
    config = _with_credentials()
    if service == "cdse":
        return EndPoints(_CDSE_BASE, _CDSE_TOKEN)
    return EndPoints(config.sh_base_url, config.sh_token_url)


def _with_credentials() -> "SHConfig":
    """The configuration of the package on this machine, in this environment."""
    from sentinelhub import SHConfig

    try:
        config = SHConfig()
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"the configuration of sentinelhub cannot be read: {error}") from error
    if not config.sh_client_id or not config.sh_client_secret:
        raise SourceError(
            "Sentinel Hub needs the credentials of an OAuth client: set SH_CLIENT_ID and "
            "SH_CLIENT_SECRET, or run sentinelhub.config --sh_client_id … --sh_client_secret …; "
            "on each machine that reads scenes"
        )
    return config


@cache
def keyless(ends: EndPoints) -> "SHConfig":
    """The package's configuration for making requests, which are sent with a token that it does
    not see."""
    from sentinelhub import SHConfig

    return SHConfig(use_defaults=True, sh_base_url=ends.base_url, sh_token_url=ends.token_url)


@cache
def collection(level: str, base_url: str) -> Any:
    """The collection at this end point; a process may define it but once."""
    from sentinelhub import DataCollection

    usual = DataCollection.SENTINEL2_L1C if level == "L1C" else DataCollection.SENTINEL2_L2A
    if usual.service_url == base_url:
        return usual
    name = re.sub(r"\W", "_", f"{usual.name}_{base_url}").upper()
    return usual.define_from(name, service_url=base_url)


@final
class Sender:
    """Sends what the package prepared, with a token; also stands in for its download client."""

    def __init__(self, ends: EndPoints, patience: Patience) -> None:
        self._ends = ends
        self._web = Web(Reach.of(ends.base_url, ends.token_url), patience)
        self._token = ""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Sender"], tuple[EndPoints, Patience]]:
        # another process asks for a token of its own, with credentials of its own
        return Sender, (self._ends, self._web.patience)

    def found(self, url: str, payload: Any) -> Mapping[str, Any]:
        """A JSON object."""
        answer = self._post(url, payload, "application/json", LARGEST_TEXT)
        try:
            found = answer.json()
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{url} answers no JSON: {error}") from error
        if not isinstance(found, dict):
            raise SourceError(f"{url} answers no JSON object")
        return found

    def process(self, url: str, payload: Any, limit: int) -> bytes:
        """The image of at most `limit` bytes; `SceneError` if the service finds fault with the
        request."""
        return self._post(url, payload, "image/tiff", limit).body

    def _post(self, url: str, payload: Any, accept: str, limit: int) -> Answer:
        """With one new token where the one at hand has died, and none where the quota is spent."""
        token = ""
        for _ in range(2):
            token = self._current_token(dead=token)
            headers = {"Authorization": f"Bearer {token}", "Accept": accept}
            answer = self._web.ask("POST", url, headers=headers, json=payload, limit=limit)
            if answer.status != 401:
                break
        if answer.status == 401:
            raise SourceError(
                f"{url} takes no token of this client; check SH_CLIENT_ID and SH_CLIENT_SECRET"
            )
        if answer.status == 403:
            raise SourceError(
                f"{url} refuses: {_said(answer)}; if the quota is spent, what is built is kept "
                "and the same command goes on when there is quota again"
            )
        if not answer.ok:
            raise SceneError(f"{url}: {answer.status} {_said(answer)}")
        return answer

    def _current_token(self, *, dead: str) -> str:
        """The token at hand, unless it is the one that was found dead."""
        with self._lock:
            if self._token == dead:
                self._token = self._new_token()
            return self._token

    def _new_token(self) -> str:
        url, config = self._ends.token_url, _with_credentials()
        form = {
            "grant_type": "client_credentials",
            "client_id": config.sh_client_id,
            "client_secret": config.sh_client_secret,
        }
        answer = self._web.ask("POST", url, form=form)
        try:
            return str(answer.json()["access_token"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(
                f"{url} gives no token ({answer.status} {_said(answer)}); check "
                "SH_CLIENT_ID and SH_CLIENT_SECRET"
            ) from error


@final
class Pages:
    """Stands in for the package's download client in one search, which may not go on for ever."""

    def __init__(self, service: Sender) -> None:
        self._service = service
        self._left = _MOST_PAGES

    def get_json_dict(
        self, url: str, *, post_values: Any, use_session: bool = True
    ) -> Mapping[str, Any]:
        """A page; `SourceError` after the thousandth."""
        if not self._left:
            raise SourceError(f"{url} gives more than {_MOST_PAGES} pages of one tile")
        self._left -= 1
        return self._service.found(url, post_values)


def _said(answer: Answer) -> str:
    """What the service says of an error, short."""
    try:
        said = answer.json()
        error = said.get("error", said)
        return str(error.get("message") or error.get("reason") or error)[:300]
    except (ValueError, AttributeError, RecursionError):
        return answer.body[:300].decode(errors="replace").strip() or answer.reason
