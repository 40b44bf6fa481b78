"""Dates by region, the plan before a build and the report after it, on products with masks."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from s2pairs.build import Request, build, choose, plan
from s2pairs.cli import app
from s2pairs.cost import estimate
from s2pairs.cube import open_cube
from s2pairs.masks import CLOUD
from s2pairs.safe_writer import L1CMasks, L1CProduct, write_l1c
from s2pairs.scenes import PixelWindow
from s2pairs.sources.reading_cost import touched_blocks
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.worlds import dn_of_place, l1c

TILE = TileId.parse("31TCJ")
SIZE = 512
MONTHS = ("01", "03", "05", "07")


def half_clouded(product: L1CProduct, west: bool) -> L1CMasks:
    """Cloud over the west half or over the east half, and no detector over the last sixth."""
    cells = np.zeros(product.shape(60), dtype=bool)
    clouds = cells.copy()
    middle = cells.shape[1] // 2
    clouds[:, :middle] = west
    clouds[:, middle:] = not west
    seen = ~cells
    seen[-cells.shape[0] // 6 :] = False
    return L1CMasks(clouds, cells, cells, seen)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dates, each clouded over one half: on average all are far above any limit."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "products").mkdir()
    for number, month in enumerate(MONTHS):
        product = l1c(day=f"2020-{month}-01", size=SIZE, cloud=50)
        bands = {"B04": dn_of_place(product, "B04")}
        write_l1c(folder / "products", product, bands, half_clouded(product, number % 2 == 0))
    (folder / "tiles.txt").write_text("31TCJ\n")
    return folder


REQUEST = Request(
    tiles=(TILE,), bands=("B04",), dates=2, regions=100, region_size=64, choice="region"
)


def test_regions_take_the_dates_that_are_clear_there(world: Path) -> None:
    catalogue = SafeCatalogue(world / "products", REQUEST.bands)
    out = world / "regions.zarr"
    build(REQUEST, catalogue, out, workers=1, progress=lambda *_: None)
    cube = open_cube(out)
    assert len(cube) > 10
    assert set((cube.col < 256).tolist()) == {True, False}
    masks = cube.read_masks(np.arange(len(cube)))
    assert not (masks & CLOUD).any()
    stored = cube.read(np.arange(len(cube)))
    for patch in range(len(cube)):
        # the west is clear in March and July, the east in January and May
        months = cube.acquired[patch].astype("datetime64[M]").astype(str).tolist()
        expected = ("2020-03", "2020-07") if cube.col[patch] < 256 else ("2020-01", "2020-05")
        assert tuple(months) == expected
        assert cube.row[patch] + 64 <= SIZE * 5 // 6 + 6  # where no detector looked
        for date, month in enumerate(months):
            product = l1c(day=f"{month}-01", size=SIZE)
            rows, columns = cube.row[patch], cube.col[patch]
            truth = dn_of_place(product, "B04")[rows : rows + 64, columns : columns + 64]
            np.testing.assert_array_equal(stored[patch, date, 0], truth + 1000)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(world: Path, out: str, *more: str) -> tuple[str | Path, ...]:
    return (
        *("build", "--tiles", world / "tiles.txt", "--source", f"safe:{world / 'products'}"),
        *("--out", world / out, "--bands", "B04", "--dates", "2", "--region-size", "64", *more),
    )


def test_a_plan_reads_no_pixel_and_says_what_a_build_does(world: Path, tmp_path: Path) -> None:
    """Images whose pixels were wiped give the same plan; the figures are those of the cube."""
    wiped = tmp_path / "wiped"
    shutil.copytree(world, wiped)
    for image in wiped.glob("products/*/GRANULE/*/IMG_DATA/*.jp2"):
        data = bytearray(image.read_bytes())
        start = data.index(b"\xff\x93") + 2  # behind the marker where the coded pixels begin
        data[start:-2] = bytes(len(data) - 2 - start)
        image.write_bytes(data)
    options = ("--plan", "--choice", "region", "--regions", "20")
    result = run(*words(wiped, "plan.zarr", *options))
    assert result.exit_code == 0, result.output
    assert not (wiped / "plan.zarr").exists()
    told = json.loads((wiped / "plan.zarr.plan.json").read_text())
    assert (told["kind"], told["outcome"], told["exit_code"]) == ("plan", "complete", 0)
    made = run(*words(world, "planned.zarr", *options[1:], "--report", str(tmp_path / "r.json")))
    assert made.exit_code == 0, made.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert told["patches"] == report["patches"]
    assert [each["product"] for each in told["scenes"]["31TCJ"]] == report["products"]
    images = list(world.glob("products/*/GRANULE/*/IMG_DATA/*.jp2"))
    masks = list(world.glob("products/*/GRANULE/*/QI_DATA/MSK_[CD]*_B0[01].*"))
    # Masks are read to choose, and again with the pixels.
    read = (*images, *masks, *masks)
    assert told["read"]["bytes"] == sum(path.stat().st_size for path in read)
    assert told["read"]["pixels"] == 4 * SIZE * SIZE
    assert told["seconds"] > 0
    assert told["left_out"] == {"31TCJ": []}
    assert "take S2A_MSIL1C_20200101T105601" in result.stdout
    assert "nothing was built" in result.stdout


def test_fewer_regions_than_asked_for_are_told(world: Path, tmp_path: Path) -> None:
    """Regions that no two dates see clearly are passed over; the draw ends before 64 are found."""
    options = ("--choice", "region", "--regions", "64")
    told = []
    for out, more in (("few.zarr", ()), ("few.zarr", ("--plan",))):
        file = tmp_path / f"{len(told)}.json"
        result = run(*words(world, out, *options, *more, "--report", str(file)))
        assert result.exit_code == 0, result.output
        told.append(json.loads(file.read_text())["remarks"])
        assert told[-1][0] in " ".join(result.stdout.split())
    assert told[0] == told[1]
    found = int(re.findall(r"tile 31TCJ has (\d+) regions of the 64 asked for", told[0][0])[0])
    cube = open_cube(world / "few.zarr")
    assert len(set(cube.region.tolist())) <= found < 64
    # all but the last sixth, where no detector looked, and the column where the clouds meet
    assert found in range(6 * 6, 7 * 8 + 1)
    some = run(*words(world, "some.zarr", "--choice", "region", "--regions", str(found), "--plan"))
    assert "asked for" not in some.stdout


def test_a_plan_names_what_is_rejected_and_why(world: Path) -> None:
    file = world / "limited.json"
    result = run(*words(world, "c.zarr", "--plan", "--max-cloud", "60", "--report", str(file)))
    assert result.exit_code == 0, result.output
    told = json.loads(file.read_text())
    assert len(told["scenes"]["31TCJ"]) == 2
    reasons = {entry["reason"] for entry in told["left_out"]["31TCJ"]}
    assert reasons == {"not among the 2 nearest to a regular step"}
    assert "leave S2A_MSIL1C_2020" in result.stdout


def test_a_plan_does_not_know_a_price_that_the_source_cannot_tell(world: Path) -> None:
    class Silent:
        """A source without `cost`."""

        def __init__(self) -> None:
            inner = SafeCatalogue(world / "products", REQUEST.bands)
            self.scenes, self.read, self.masks = inner.scenes, inner.read, inner.masks

    listings = choose(REQUEST, Silent())
    found = estimate(listings, plan(REQUEST, listings), Silent(), 1, REQUEST.wanted)
    assert (found.read, found.seconds) == (None, None)
    assert "cannot tell" in found.notes[0]


def test_blocks_that_windows_touch_by_brute_force() -> None:
    draw = np.random.default_rng(0)
    for step in (1, 2, 6):
        windows = [PixelWindow(*draw.integers(0, 900, 2), *draw.integers(1, 300, 2)) for _ in "abc"]
        touched = np.zeros((1300, 1300), dtype=bool)
        for each in windows:
            touched[each.row : each.row + each.height, each.col : each.col + each.width] = True
        rows, columns = np.nonzero(touched)
        expected = set(zip(rows // step // 64, columns // step // 48, strict=True))
        assert touched_blocks(windows, step, (64, 48)) == expected


def test_a_report_tells_a_script_what_failed_and_where(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = run(*words(world, "few.zarr", "--report", str(file)))
    assert result.exit_code == 2
    told = json.loads(file.read_text())
    assert (told["outcome"], told["exit_code"]) == ("failed", 2)
    assert told["error"]["tile"] == "31TCJ"
    assert told["error"]["kind"] == "SourceError"
    assert told["error"]["message"] in " ".join(result.stderr.split())

    broken = tmp_path / "broken"
    shutil.copytree(world / "products", broken / "products")
    (broken / "tiles.txt").write_text("31TCJ\n")
    for path in broken.glob("products/*/GRANULE/*/QI_DATA/MSK_CLOUDS_B00.gml"):
        path.write_text("<eop:Mask> never closed </Mask>")  # whole, as far as its end shows
    for choice in ("tile", "region"):
        more = ("--choice", choice, "--max-cloud", "60", "--report", str(file))
        result = run(*words(broken, f"{choice}.zarr", *more))
        check_told(result, json.loads(file.read_text()))


def check_told(result: Result, told: dict[str, Any]) -> None:
    """The message and the report name tile and product, and the message what to do."""
    assert result.exit_code == 2
    product = told["error"]["product"]
    assert (told["error"]["tile"], told["error"]["kind"]) == ("31TCJ", "SceneError")
    assert product.startswith("S2A_MSIL1C_2020")
    said = " ".join(result.stderr.split())
    assert f"tile 31TCJ, product {product}: " in said
    assert "MSK_CLOUDS_B00.gml cannot be read" in said
    assert re.search("replace (or remove )?that product and run the same command again", said)


def test_a_report_of_what_was_made(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "report.json"
    result = run(*words(world, "told.zarr", "--max-cloud", "60", "--report", str(file)))
    assert result.exit_code == 0, result.output
    told = json.loads(file.read_text())
    cube = open_cube(world / "told.zarr")
    assert (told["kind"], told["outcome"], told["exit_code"]) == ("build", "complete", 0)
    assert told["patches"] == len(cube)
    assert told["products"] == cube.attributes["products"]
    assert told["left_out_because"] == cube.attributes["products_left_out"]
    (tmp_path / "file").write_text("mine")
    result = run(*words(world, "told.zarr", "--plan", "--report", str(tmp_path / "file" / "r")))
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_archives_make_the_same_cube_byte_for_byte(world: Path, tmp_path: Path) -> None:
    (tmp_path / "products").mkdir()
    for folder in (world / "products").iterdir():
        with zipfile.ZipFile(tmp_path / "products" / f"{folder.name}.zip", "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder.parent))
    digests = []
    for place, name in ((world, "a.zarr"), (tmp_path, "b.zarr")):
        catalogue = SafeCatalogue(place / "products", REQUEST.bands)
        build(REQUEST, catalogue, tmp_path / name, workers=1, progress=lambda *_: None)
        digests.append(open_cube(tmp_path / name).digest)
    assert digests[0] == digests[1]
