"""Cubes in object storage: a real S3 protocol over HTTP on loopback, and bytes as on a disk."""

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimodel.data.sentinel2 import CubePairs
from s2pairs.build import Request, build, choose, plan
from s2pairs.checking import check, repair
from s2pairs.cube import create, open_cube
from s2pairs.errors import CubeError
from s2pairs.growing import append_tiles, merge
from s2pairs.storage import LocalStore, ObjectStore, store_at
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

TILES = ("31TCJ", "19KDQ")
SOURCE = Places(
    tuple(l1c(tile, day, size=256) for tile in TILES for day in ("2020-01-03", "2020-03-10"))
)
REQUEST = Request((TileId.parse("31TCJ"),), ("B04",), dates=2, regions=4, region_size=128)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty bucket of a server in this process."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("cubes")
    yield "s3://cubes"
    server.stop()
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "cube.zarr"
    build(REQUEST, SOURCE, path, workers=2, progress=lambda *_: None)
    return path


@pytest.fixture(scope="module")
def url(bucket: str) -> str:
    place = f"{bucket}/made/cube.zarr"
    build(REQUEST, SOURCE, place, workers=2, progress=lambda *_: None)
    return place


def objects(url: str) -> dict[str, bytes]:
    store = store_at(url)
    return {key: store.read(key) for key in store.sizes()}


def test_the_objects_are_the_files(url: str, on_disk: Path) -> None:
    assert objects(url) == bytes_of(on_disk)
    again = build(REQUEST, SOURCE, url, workers=1, progress=lambda *_: None)
    assert again.already_built == again.shards


@pytest.mark.slow
def test_it_reads_as_from_a_disk(url: str, on_disk: Path) -> None:
    far, near = open_cube(url), open_cube(on_disk)
    draw = np.random.default_rng(0)
    places, dates = draw.integers(len(near), size=8), draw.integers(2, size=(2, 8))
    for one, other in zip(
        far.read_pairs(places, *dates), near.read_pairs(places, *dates), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(far.read_masks(places), near.read_masks(places))
    np.testing.assert_array_equal(far.valid_fraction, near.valid_fraction)
    assert far.digest == near.digest
    assert pickle.loads(pickle.dumps(far)).digest == near.digest
    options = {"bands": None, "min_valid": 0.9, "memory_gb": 0.0, "seed": 0}
    options["split"] = str(near.split[0])
    a, b = (CubePairs(each, **options).batch(0, 2) for each in (url, on_disk))
    assert (a.x == b.x).all()
    assert (a.y == b.y).all()


@pytest.mark.slow
def test_damage_is_found_and_mended(url: str, on_disk: Path) -> None:
    store = store_at(url)
    assert isinstance(store, ObjectStore)
    store._files.rm_file(store._at("mask/c.0.0.0.0"))
    store.write("x/c/0", b"broken")
    for read in (open_cube, lambda place: list(check(place))):
        with pytest.raises(CubeError, match=r"is damaged .*--repair SOURCE"):
            read(url)
    done = repair(url, lambda *_: SOURCE, workers=1, progress=lambda *_: None)
    assert (done.rebuilt, len(done.put_back)) == (1, 1)
    assert objects(url) == bytes_of(on_disk)


@pytest.mark.slow
def test_growing_takes_a_new_place(url: str, on_disk: Path, bucket: str, tmp_path: Path) -> None:
    more = [TileId.parse("19KDQ")]
    with pytest.raises(CubeError, match="give a new place with --out"):
        append_tiles(url, more, lambda *_: SOURCE, url, workers=1, progress=lambda *_: None)
    out = f"{bucket}/grown.zarr"
    append_tiles(url, more, lambda *_: SOURCE, out, workers=1, progress=lambda *_: None)
    append_tiles(
        on_disk, more, lambda *_: SOURCE, tmp_path / "g.zarr", workers=1, progress=lambda *_: None
    )
    assert objects(out) == bytes_of(tmp_path / "g.zarr")
    both = merge([url, on_disk], tmp_path / "m.zarr", workers=1, progress=lambda *_: None)
    assert both.left_out == both.patches


def test_of_two_builds_that_begin_at_once_one_goes_on(bucket: str) -> None:
    """Both have seen nothing there; the second would put its coordinates over the first's."""
    first, other = (
        plan(request, choose(request, SOURCE)) for request in (REQUEST, replace(REQUEST, seed=1))
    )
    place = f"{bucket}/race.zarr"
    create(place, first)
    before = objects(place)
    with pytest.raises(
        CubeError, match=r"another build, of other .*, has begun at s3://cubes/race"
    ):
        create(place, other)
    assert objects(place) == before
    create(place, first)  # of one plan both may go on
    assert objects(place) == before


def test_what_is_not_there_is_said(bucket: str) -> None:
    with pytest.raises(CubeError, match="is not a cube"):
        open_cube(f"{bucket}/nowhere.zarr")
    with pytest.raises(CubeError, match="there is no such bucket; make it"):
        build(REQUEST, SOURCE, "s3://no-such-bucket/c.zarr", workers=1, progress=lambda *_: None)
    with pytest.raises(CubeError, match="a URL that fsspec knows"):
        open_cube("gopher://host/cube.zarr")


@pytest.mark.parametrize("place", ["cube.zarr", Path("cube.zarr"), "file:///tmp/cube.zarr"])
def test_paths_are_paths(place: str | Path) -> None:
    assert isinstance(store_at(place), LocalStore)


def test_a_full_disk_or_a_dead_writer_leaves_the_old_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "x").mkdir()
    store.write("x/c.0", b"before")
    (tmp_path / "x" / ".c.0.abc.new").write_bytes(b"half of the ne")
    store.sweep()
    assert bytes_of(tmp_path) == {"x/c.0": b"before"}
