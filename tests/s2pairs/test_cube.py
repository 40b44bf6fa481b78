"""The format on disk: against zarr and xarray as independent readers and writers, and damage."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from s2pairs import shards
from s2pairs.checking import check, repair
from s2pairs.cube import Cube, create, open_cube, open_unchanged, plan_of, same_plan
from s2pairs.errors import CubeError
from s2pairs.masks import MEANINGS, NO_DATA
from s2pairs.patches import PatchTable
from s2pairs.plan import COORDINATES, SHARD_BYTES, SHARD_PATCHES, Plan, plan_arrays
from s2pairs.storage import store_at
from tests.cubes import write_shard
from tests.s2pairs.files import bytes_of

DATES = 3
BANDS = ("B04", "B08")
PATCHES = SHARD_PATCHES + 6  # the second shard is not full


def plan() -> Plan:
    number = np.arange(PATCHES)
    start = np.datetime64("2020-01-01T10:30:00.024", "ms")
    steps = np.arange(PATCHES * DATES).reshape(PATCHES, DATES)
    return Plan(
        bands=BANDS,
        level="L1C",
        table=PatchTable(
            tile=np.where(number < 50, "31TCJ", "01LAC"),
            region=(number // 16).astype(np.int32),
            row=(number // 4 * 64).astype(np.int32),
            col=(number % 4 * 64).astype(np.int32),
            epsg=np.where(number < 50, 32631, 32701).astype(np.int32),
            x=300320.0 + 640 * number,
            y=4899700.0 - 640 * number,
            split=np.where(number < 40, "train", np.where(number < 55, "validation", "test")),
        ),
        acquired=start + steps.astype("timedelta64[D]"),
        product=np.array([[f"S2A_{p}_{d}" for d in range(DATES)] for p in range(PATCHES)]),
        parameters={"seed": 1, "bands": list(BANDS), "start": None},
        attributes={"products": ["S2A_0_0"], "products_left_out": [], "notice": "none"},
    )


@cache
def numbers() -> npt.NDArray[np.uint16]:
    shape = (PATCHES, DATES, len(BANDS), 64, 64)
    draw = np.random.default_rng(0)
    smooth = draw.integers(500, 3000, shape[:3])[..., None, None]
    values = (smooth + draw.integers(0, 90, shape)).astype(np.uint16)
    values[2, 1] = 0  # a date without data
    values[3, 0, 0, :16] = 0  # a quarter without data, in one band
    values[4, 2] = 65535
    values.flags.writeable = False
    return values


@cache
def flags() -> npt.NDArray[np.uint8]:
    """Each bit by chance in every fourth pixel, but no-data, which the pixels say."""
    draw = np.random.default_rng(1)
    values = draw.integers(0, 256, (PATCHES, DATES, 64, 64), dtype=np.uint8)
    values &= draw.integers(0, 256, values.shape, dtype=np.uint8)
    values &= ~np.uint8(NO_DATA)
    values[(numbers() == 0).any(axis=2)] |= NO_DATA
    values.flags.writeable = False
    return values


def write(path: Path, shape: Plan, values: npt.NDArray[np.uint16]) -> Path:
    create(path, shape)
    for shard in range(shape.shards):
        write_part(path, shape, shard, values)
    return path


def write_part(path: Path, shape: Plan, shard: int, values: npt.NDArray[np.uint16]) -> None:
    rows = slice(shard * SHARD_PATCHES, (shard + 1) * SHARD_PATCHES)
    write_shard(path, shape, shard, values[rows], flags()[rows])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original") / "cube.zarr", plan(), numbers())


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A cube that a test may damage."""
    return shutil.copytree(original, tmp_path / "cube.zarr")


def damages(path: Path) -> list[str]:
    return [str(damage) for damage, _, _ in check(path) if damage]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_plain_xarray_reads_it_and_nothing_warns(path: Path) -> None:
    program = f"""
import numpy as np, xarray
cube = xarray.open_zarr({str(path)!r})
assert cube.reflectance.dims == ("patch", "date", "band", "y", "x"), cube.reflectance.dims
assert cube.reflectance.dtype.kind == "f"
assert set(cube.coords) == {{
    "band", "tile", "region", "row", "col", "epsg", "x", "y", "split",
    "acquired", "product", "valid_fraction", "clear_fraction", "dy", "dx",
    "saturated_fraction", "dark_fraction",
}}, set(cube.coords)
assert cube.band.values.tolist() == ["B04", "B08"]
assert str(cube.acquired.values[0, 1]).startswith("2020-01-02T10:30:00.024"), cube.acquired
infrared = cube.sel(band="B08").reflectance.isel(patch=cube.split.values == "test")
assert infrared.shape == (15, 3, 64, 64)
assert cube.reflectance.attrs["standard_name"] == "toa_bidirectional_reflectance"
assert cube.attrs["wavelengths_nm"] == [664.6, 832.8]
np.save({str(path.with_name("seen.npy"))!r}, cube.reflectance.values)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    seen = np.load(path.with_name("seen.npy"))
    values = numbers()
    np.testing.assert_array_equal(np.isnan(seen), values == 0)
    meant = values * 1e-4 - 0.1
    np.testing.assert_allclose(seen[values > 0], meant[values > 0], atol=1e-6)


def test_zarr_reads_the_same_numbers(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["reflectance"][...], numbers())
    ledger = group["shard_sha256"][...]
    assert ledger.shape == (2, 9, 32)
    assert ledger.any(axis=2).all()


def test_a_shard_that_zarr_writes_reads_the_same(path: Path, tmp_path: Path) -> None:
    """zarr as an independent writer: same metadata, its own bytes, our reader."""
    other = tmp_path / "other.zarr"
    create(other, plan())
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(other, mode="r+")["reflectance"][...] = numbers()
    layout = plan().layout
    store, key = store_at(other), "reflectance/c.1.0.0.0.0"
    index = shards.read_index(store, key, layout)
    places = [(5, 2), (0, 0), (2, 1)]
    for (patch, date), chunk in zip(
        places, shards.read_chunks(store, key, index, layout, places), strict=True
    ):
        np.testing.assert_array_equal(chunk, numbers()[SHARD_PATCHES + patch, date])
    with pytest.raises(CubeError, match="has no patch 6"):
        list(shards.read_chunks(store, key, index, layout, [(6, 0)]))


def test_our_reader_gives_what_was_written(path: Path) -> None:
    cube = open_cube(path)
    assert (len(cube), cube.patches, cube.dates, cube.bands) == (PATCHES, PATCHES, DATES, BANDS)
    for name, column in vars(plan().table).items():
        np.testing.assert_array_equal(getattr(cube, name), column)
        assert getattr(cube, name).dtype == column.dtype
    np.testing.assert_array_equal(cube.acquired, plan().acquired)
    np.testing.assert_array_equal(cube.product, plan().product)
    np.testing.assert_array_equal(cube.read(np.arange(PATCHES)), numbers())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_order_and_repetition(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cube = shared_cube(tmp_path_factory)
    place = st.tuples(*(st.integers(0, n - 1) for n in (PATCHES, DATES, DATES)))
    places = np.array(data.draw(st.lists(place, max_size=9)), dtype=int).reshape(-1, 3)
    patch, a, b = places.T
    first, second = cube.read_pairs(patch, a, b)
    np.testing.assert_array_equal(first, numbers()[patch, a])
    np.testing.assert_array_equal(second, numbers()[patch, b])
    np.testing.assert_array_equal(cube.read(patch), numbers()[patch])


_SHARED: list[Cube] = []


def shared_cube(factory: pytest.TempPathFactory) -> Cube:
    if not _SHARED:
        _SHARED.append(open_cube(write(factory.mktemp("shared") / "c.zarr", plan(), numbers())))
    return _SHARED[0]


@pytest.mark.parametrize(("patch", "date"), [(PATCHES, 0), (-1, 0), (0, DATES), (0, -1)])
def test_places_that_do_not_exist(path: Path, patch: int, date: int) -> None:
    with pytest.raises(CubeError, match="indices, from 0"):
        open_cube(path).read_pairs([patch], [date], [0])


def test_as_many_dates_as_patches(path: Path) -> None:
    with pytest.raises(CubeError, match="2 patches need as many"):
        open_cube(path).read_pairs([0, 1], [0], [0])


def test_valid_fraction_counts_pixels_with_data_in_every_band(path: Path) -> None:
    expected = np.ones((PATCHES, DATES), dtype=np.float32)
    expected[2, 1], expected[3, 0] = 0, 0.75
    np.testing.assert_array_equal(open_cube(path).valid_fraction, expected)
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["valid_fraction"][...], expected)


def test_masks_read_back_and_zarr_reads_the_same(path: Path) -> None:
    array = zarr.open_group(path, mode="r")["mask"]
    np.testing.assert_array_equal(array[...], flags())
    cube = open_cube(path)
    some = [69, 3, 0, 3]
    np.testing.assert_array_equal(cube.read_masks(some), flags()[some])
    assert array.attrs["flag_meanings"].split() == list(MEANINGS)
    assert array.attrs["flag_masks"] == [2**bit for bit in range(8)]
    assert array.fill_value == NO_DATA  # a missing shard must not read as clear


def test_clear_fraction_counts_pixels_without_cloud_cirrus_shadow_or_no_data(path: Path) -> None:
    of_pixel = np.unpackbits(flags()[..., None], axis=-1, bitorder="little")
    unclear = of_pixel[..., [0, 2, 3, 4]].any(axis=-1)
    expected = (~unclear).sum(axis=(2, 3)) / 4096
    np.testing.assert_array_equal(open_cube(path).clear_fraction, expected.astype(np.float32))


def test_the_same_pixels_make_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again.zarr", plan(), numbers())
    assert bytes_of(again) == bytes_of(path)
    assert open_cube(again).digest == open_cube(path).digest
    changed = numbers().copy()
    changed[69, 2, 1, 63, 63] += 1
    other = write(tmp_path / "other.zarr", plan(), changed)
    assert open_cube(other).digest != open_cube(path).digest


def test_many_bands_make_the_same_bytes_on_any_thread(tmp_path: Path) -> None:
    """blosc with several blocks a chunk would order them by chance."""
    from concurrent.futures import ThreadPoolExecutor

    layout = shards.ShardLayout(4, 2, (13, 64, 64))
    values = np.random.default_rng(1).integers(0, 4000, (4, 2, 13, 64, 64)).astype(np.uint16)
    here = shards.encode(values, layout)
    with ThreadPoolExecutor(4) as pool:
        assert {here} == set(pool.map(lambda _: shards.encode(values, layout), range(8)))


def test_an_unfinished_cube_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    create(path, plan())
    with pytest.raises(CubeError, match="0 of 2 shards are built; run the same s2pairs build"):
        open_cube(path)
    write_part(path, plan(), 1, numbers())
    stands = open_unchanged(path).ledger.stands
    assert [stands(shard) for shard in (0, 1)] == [False, True]
    with pytest.raises(CubeError, match="1 of 2 shards are built"):
        open_cube(path)
    (damage,) = damages(path)
    assert damage.startswith("shard 0: it is not built; run the same s2pairs build command again")


def test_a_shard_is_bounded_whatever_a_place_has() -> None:
    def of(bands: int, dates: int) -> Plan:
        names = tuple(f"B{number:02}" for number in range(1, bands + 1))
        product = np.full((PATCHES, dates), "P")
        return replace(plan(), bands=names, product=product, acquired=plan().acquired[:, :1])

    assert of(4, 12).layout.patches == of(12, 12).layout.patches == SHARD_PATCHES
    for bands, dates in ((12, 90), (4, 400), (1, 12_800), (12, 1)):
        layout = of(bands, dates).layout
        shard = layout.patches * layout.dates * layout.chunk_bytes
        assert shard <= SHARD_BYTES
        assert layout.patches == SHARD_PATCHES or 2 * shard > SHARD_BYTES
        assert of(bands, dates).shards == -(-PATCHES // layout.patches)
    with pytest.raises(CubeError, match="1200 dates of 12 bands are 112 MiB a place"):
        _ = of(12, 1200).layout


def test_the_ledger_takes_no_row_of_another_plan(path: Path) -> None:
    """As two builds write them that began at once where no lock holds."""
    other = replace(plan(), parameters={**plan().parameters, "seed": 2})
    write_part(path, other, 1, numbers())
    assert damages(path) == [
        "shard 1: it is not built; run the same s2pairs build command again, or s2pairs check "
        f"{path} --repair SOURCE mends it"
    ]
    with pytest.raises(CubeError, match="1 of 2 shards are built"):
        open_cube(path)


def test_strange_files_in_the_folder_are_no_damage(path: Path) -> None:
    before = bytes_of(path)
    for strange in (".DS_Store", "cube.aux.xml", "x/.DS_Store", "product/c/0/Thumbs.db"):
        (path / strange).write_bytes(b"strange")
    half_written = ("zarr.json", "x/c/0", "product/c/0/0", "mask/c.0.0.0.0")
    for name in half_written:
        (path / name).with_name(f".{(path / name).name}.{'a' * 32}.new").write_bytes(b"half")
    assert damages(path) == []
    found = repair(path, lambda *_: pytest.fail("asked"), workers=1, progress=lambda *_: None)
    assert (found.rebuilt, found.put_back) == (0, ())
    left = bytes_of(path)
    assert {name: left.pop(name) for name in before} == before
    assert set(left.values()) == {b"strange"}


def test_a_cube_knows_the_plan_it_was_made_from(path: Path) -> None:
    assert plan_of(open_cube(path)).digest == plan().digest


def read_all(cube: Cube) -> None:
    everything = np.arange(len(cube))
    _ = (cube.read(everything), cube.read_masks(everything))
    _ = (cube.valid_fraction, cube.clear_fraction)


@pytest.mark.parametrize("array", ["reflectance", "mask", "valid_fraction", "clear_fraction"])
def test_a_missing_shard_is_no_silent_no_data(path: Path, array: str) -> None:
    (file,) = (path / array).glob("c.1.*")
    opened_before = open_cube(path)
    file.unlink()
    with pytest.raises(CubeError, match=r"lacks shard 1 .*same s2pairs build command"):
        open_cube(path)
    (damage,) = damages(path)
    assert damage.startswith(f"shard 1: the file {file} is missing")
    with pytest.raises(CubeError, match="is missing"):
        read_all(opened_before)


@pytest.mark.parametrize("where", ["pixels", "index", "mask", "fraction", "clear", "ledger"])
def test_a_flipped_bit_is_found(path: Path, where: str) -> None:
    array, position = {
        "pixels": ("reflectance", 5_000),
        "index": ("reflectance", -900),
        "mask": ("mask", 5_000),
        "fraction": ("valid_fraction", 9),
        "clear": ("clear_fraction", 9),
        "ledger": ("shard_sha256", 7),
    }[where]
    (file,) = (path / array).glob("c.0.*")
    flip(file, position)
    (damage,) = damages(path)
    assert damage.startswith("shard 0: ")
    assert where == "ledger" or f"the bytes of {file} are not" in damage
    stands = open_unchanged(path).ledger.stands
    assert [stands(shard) for shard in (0, 1)] == [False, True]


def test_reading_changed_pixels_is_an_error(path: Path) -> None:
    cube = open_cube(path)
    flip(path / "reflectance" / "c.0.0.0.0.0", 40)
    with pytest.raises(CubeError, match="is damaged; s2pairs check"):
        cube.read([0])


@pytest.mark.parametrize("kept", [0, 3, 500, 20_000])
def test_a_shard_cut_short_is_an_error(path: Path, kept: int) -> None:
    file = path / "reflectance" / "c.0.0.0.0.0"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CubeError, match=r"cut short|damaged"):
        open_cube(path).read([0])
    assert len(damages(path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        ("zarr.json", '"B04"', '"B03"'),
        ("zarr.json", "0.0001", "0.0002"),
        ("reflectance/zarr.json", "0.0001", "0.0002"),
        ("x/zarr.json", "easting", "northing"),
    ],
)
def test_changed_metadata_are_found(path: Path, change: tuple[str, str, str]) -> None:
    name, before, after = change
    text = (path / name).read_text()
    assert before in text
    (path / name).write_text(text.replace(before, after))
    assert any("coordinates or attributes were changed" in damage for damage in damages(path))
    with pytest.raises(CubeError, match="run s2pairs check"):
        open_cube(path)


COLUMNS = [*COORDINATES, "band"]


def chunk_of(path: Path, column: str) -> Path:
    (file,) = (f for f in (path / column).rglob("*") if f.is_file() and f.name != "zarr.json")
    return file


@pytest.mark.parametrize("column", COLUMNS)
def test_changed_coordinates_are_found(path: Path, column: str) -> None:
    file = chunk_of(path, column)
    flip(file, file.stat().st_size // 2)
    with pytest.raises(CubeError, match=r"is damaged.*(build it again|run s2pairs check)"):
        open_cube(path)


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_coordinates_are_no_silent_fill_values(path: Path, column: str) -> None:
    opened_before = open_cube(path)
    chunk_of(path, column).unlink()
    with pytest.raises(CubeError, match=r"were changed or are missing; run s2pairs check"):
        open_cube(path)
    with pytest.raises(CubeError, match=r"were changed or are missing"):
        same_plan(path, plan())
    (damage,) = damages(path)
    assert "--repair SOURCE mends it" in damage
    assert len(opened_before) == PATCHES


@pytest.mark.parametrize("column", ["acquired", "product"])
def test_a_column_that_is_damaged_after_opening_is_an_error(path: Path, column: str) -> None:
    cube = open_cube(path)
    file = chunk_of(path, column)
    flip(file, file.stat().st_size // 2)
    with pytest.raises(CubeError, match="was damaged after it was opened"):
        getattr(cube, column)


@pytest.mark.parametrize("data", [b"", bytes(3), bytes(4), b"\0\0\0"])
def test_an_emptied_file_of_valid_fractions_is_an_error(path: Path, data: bytes) -> None:
    (file,) = (path / "valid_fraction").glob("c.0.*")
    file.write_bytes(data)
    with pytest.raises(CubeError, match=r"is (damaged|cut short); s2pairs check"):
        _ = open_cube(path).valid_fraction


def test_what_is_not_a_cube(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="no such folder"):
        open_cube(tmp_path / "missing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CubeError, match="is not a cube of s2pairs"):
        open_cube(tmp_path / "empty")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(CubeError, match="is not a cube of s2pairs"):
        open_cube(tmp_path / "foreign.zarr")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    with pytest.raises(CubeError, match="is not a cube of s2pairs"):
        open_cube(tmp_path / "broken")


def test_a_later_format_is_refused(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["format_version"] = 3
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CubeError, match="format version 3; this program reads 2"):
        open_cube(path)


def test_only_the_same_plan_goes_on(path: Path) -> None:
    same_plan(path, plan())
    other = replace(plan(), parameters={**plan().parameters, "seed": 2})
    with pytest.raises(CubeError, match=r"seed was 1, now 2; use the same ones or another --out"):
        same_plan(path, other)
    product = plan().product.astype("<U20")
    product[0, 0] = "S2B_another"
    with pytest.raises(CubeError, match=r"other products; what differs: .*S2B_another"):
        same_plan(path, replace(plan(), product=product))


def test_creating_is_whole_or_nothing(tmp_path: Path) -> None:
    """What an interrupted creation leaves behind is swept away by the next."""
    path = tmp_path / "cube.zarr"
    left = tmp_path / ".cube.zarr.new"
    left.mkdir()
    (left / "rubbish").touch()
    create(path, plan())
    assert list(tmp_path.iterdir()) == [path]
    assert not (path / "rubbish").exists()


def test_a_full_disk_is_one_sentence_and_leaves_what_is_built(tmp_path: Path) -> None:
    """The operating system refuses files above a size, as it does on a disk without room."""
    path = tmp_path / "cube.zarr"
    create(path, plan())
    write_part(path, plan(), 1, numbers())
    before = bytes_of(path)
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.s2pairs.test_cube import CubeError, create, numbers, plan, write_part
resource.setrlimit(resource.RLIMIT_FSIZE, (99_000, 99_000))
try:
    write_part(Path({str(path)!r}), plan(), 0, numbers())
except CubeError as error:
    assert "cannot write" in str(error) and "make room" in str(error), error
else:
    raise AssertionError("written")
resource.setrlimit(resource.RLIMIT_FSIZE, (9, 99_000))
try:
    create(Path({str(path.with_name("other.zarr"))!r}), plan())
except CubeError as error:
    assert "cannot create" in str(error), error
else:
    raise AssertionError("created")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert bytes_of(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_document_lists_every_array() -> None:
    """Name, dimensions and type of each array as docs/cube.md has them."""
    text = (Path(__file__).parents[2] / "docs" / "cube.md").read_text(encoding="utf-8")
    table = text.partition("## Arrays")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    told = {
        name.strip("` "): (dims.strip(), kind.partition(",")[0].strip())
        for names, dims, kind in rows
        for name in names.split(",")
    }
    assert told == {
        array.name: (", ".join(array.dims), array.dtype) for array in plan_arrays(plan())
    }
