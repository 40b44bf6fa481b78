"""Buckets of object stores: their faults, and what may be asked of them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rasterio.io import DatasetReader

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.assets import Assets
from s2pairs.sources.reach import Reach
from s2pairs.sources.web import Patience, Web
from tests.s2pairs.local_server import Answer, Asked, Server, part_of, serving
from tests.s2pairs.stac_world import LAND, cog_item


class Bucket:
    """An object store with one bucket, as far as GDAL asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Answer | None = None

    def __call__(self, asked: Asked) -> Answer:
        if self.fault is not None:
            return self.fault
        return part_of(self.folder / asked.path.removeprefix("/bucket/"), asked)


@contextmanager
def in_bucket(folder: Path) -> Iterator[tuple[Bucket, Assets, Server]]:
    bucket = Bucket(folder)
    with serving(bucket) as server:
        store = {
            "AWS_S3_ENDPOINT": server.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_NO_SIGN_REQUEST": "YES",
        }
        web = Web(Reach.of(), Patience(tries=2, first_wait_s=0.01, timeout_s=5))
        yield bucket, Assets(web, {"bucket": store}, beside_local_catalogue=False), server


def first_pixel(image: DatasetReader) -> int:
    return int(image.read(1)[0, 0])


def test_a_store_that_fails_is_no_broken_scene(tmp_path: Path) -> None:
    """While a file is opened and while it is read; and a short file is one."""
    cog_item(tmp_path / "x", LAND)
    whole = (tmp_path / "x" / "B.tif").read_bytes()
    for name in ("opened", "read"):
        (tmp_path / f"{name}.tif").write_bytes(whole)
    (tmp_path / "short.tif").write_bytes(whole[: len(whole) // 2])
    with in_bucket(tmp_path) as (bucket, assets, server):
        assert assets.look("s3://bucket/opened.tif", first_pixel) == LAND[0, 0]
        for name in ("short", "nowhere"):
            with pytest.raises(SceneError, match=f"s3://bucket/{name}.tif cannot be"):
                assets.look(f"s3://bucket/{name}.tif", first_pixel)
        with pytest.raises(SceneError):
            assets.check_whole("s3://bucket/short.tif")

        def falls_silent(image: DatasetReader) -> int:
            bucket.fault = Answer(status=503)
            return first_pixel(image)

        before = len(server.asked)
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/read.tif", falls_silent)
        assert len(server.asked) - before > 2  # tried again
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/new.tif", first_pixel)
        bucket.fault = Answer(status=403)
        with pytest.raises(SourceError, match="403"):
            assets.look("s3://bucket/newer.tif", first_pixel)


def test_a_store_that_says_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{silent.getsockname()[1]}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_NO_SIGN_REQUEST": "YES",
        }
        web = Web(Reach.of(), Patience(tries=1, first_wait_s=0.01, timeout_s=1))
        assets = Assets(web, {"bucket": store}, beside_local_catalogue=False)
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/silent.tif", first_pixel)
