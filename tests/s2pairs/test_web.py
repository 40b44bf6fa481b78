"""Asking other machines: how much is taken, how often it is asked, and which keys go where."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.reach import Reach, shown
from s2pairs.sources.web import Patience, RangeFile, Web
from tests.s2pairs.local_server import Answer, Asked, serving

QUICK = Patience(tries=3, first_wait_s=0.01, longest_wait_s=0.05, timeout_s=5)


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("https://me:secret@host.example/v1", "https://host.example/v1"),
        ("https://me:se@cret@host.example/v1?key=secret", "https://host.example/v1?…"),
        ("s3://key:secret@bucket/x.tif", "s3://bucket/x.tif"),
        (
            "Max retries exceeded with url: /x.tif?X-Amz-Signature=secret (Caused by …)",
            "Max retries exceeded with url: /x.tif?… (Caused by …)",
        ),
        ("'https://a.example/x?sig=secret' and https://b:secret@b.example", None),
        ("https://host.example/a@b.tif", "https://host.example/a@b.tif"),
    ],
)
def test_an_address_is_shown_without_its_keys(text: str, fit: str | None) -> None:
    assert "secret" not in shown(text)
    if fit is not None:
        assert shown(text) == fit
    assert len(shown(text * 100)) <= 200


@pytest.mark.parametrize("status", [404, 500])
def test_no_error_says_the_keys_of_an_address(status: int) -> None:
    with serving(lambda _: Answer(status=status)) as server:
        url = f"{server.url.replace('//', '//me:secret@')}/x.tif?token=secret"
        web = Web(Reach.of(server.url), QUICK)
        with pytest.raises((SceneError, SourceError), match=str(status)) as raised:
            web.content(url)
        assert "secret" not in str(raised.value)
    for address, why in ((url, "no connection"), (url.replace("http", "ftp"), "ftp")):
        with pytest.raises(SourceError, match=why) as raised:
            Web(Reach.of(server.url), QUICK).content(address)
        assert "secret" not in str(raised.value)


def test_the_keys_in_an_address_are_used_and_those_of_other_programs_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1\nlogin another\npassword key\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(lambda _: Answer(b"x")) as server:
        web = Web(Reach.of(server.url), QUICK)
        web.ask("GET", server.url, headers={"Authorization": "Bearer token"})
        web.ask("GET", server.url.replace("//", "//me:mine@"))
        web.ask("GET", server.url)
        said = [asked.headers.get("Authorization") for asked in server.asked]
        mine = base64.b64encode(b"me:mine").decode()
        assert said == ["Bearer token", f"Basic {mine}", None]


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: Answer(b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        web = Web(Reach.of(told=["data.example.org"]), QUICK)
        assert web.content("http://data.example.org/x") == b"by proxy"


def test_what_is_longer_than_expected_is_not_read_to_its_end() -> None:
    bomb = gzip.compress(bytes(5 * 2**20), 1)
    answers = {
        "/bomb": Answer(bomb, headers={"Content-Encoding": "gzip"}),
        "/long": Answer(bytes(5 * 2**20)),
    }
    with serving(lambda asked: answers[asked.path]) as server:
        web = Web(Reach.of(server.url), QUICK)
        for path in answers:
            with pytest.raises(SceneError, match=r"gives more than the 1048576 bytes"):
                web.ask("GET", server.url + path, limit=2**20)
            assert web.content(server.url + path) == bytes(5 * 2**20)


def test_a_part_that_is_more_than_was_asked_for_is_refused() -> None:
    def more(_: Asked) -> Answer:
        return Answer(bytes(99_999), 206, {"Content-Range": "bytes 0-16383/1000000"})

    with serving(more) as server, pytest.raises(SceneError, match="gives more than the 16384"):
        RangeFile(Web(Reach.of(server.url), QUICK), f"{server.url}/x.tif")


def test_faults_of_two_kinds_share_the_tries() -> None:
    """A body that breaks off and a busy server: as many tries as are allowed, not their square."""

    def answer(_: Asked) -> Answer:
        broken = len(server.asked) % 2
        return Answer(b"{", headers={"Content-Length": "9"}) if broken else Answer(status=503)

    with serving(answer) as server:
        patience = Patience(tries=4, first_wait_s=0.01, longest_wait_s=0.05, timeout_s=0.2)
        with pytest.raises(SourceError, match="the same command goes on later"):
            Web(Reach.of(server.url), patience).content(server.url)
        assert len(server.asked) == 4


def test_the_body_of_a_redirect_is_not_read() -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/there":
            return Answer(json.dumps([1]).encode())
        return Answer(status=302, headers={"Location": "/there", "Content-Length": str(2**40)})

    with serving(answer) as server:
        web = Web(Reach.of(server.url), Patience(tries=1, timeout_s=1))
        assert web.ask("GET", f"{server.url}/here").json() == [1]
