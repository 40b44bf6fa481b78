"""Maps of pixels by a trained model: do they separate the land cover of a made landscape, and show
the water of a real scene?"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from typer import Typer
from typer.testing import CliRunner

from mimodel.artifact import Artifact
from mimodel.cli import app as mimodel
from mimodel.data.scenes import LabelledScene, labelled_scenes
from mimodel.separation import OTHER, SAME, separation
from mimodel.similarity import PreparedImage
from s2pairs.bands import BANDS
from s2pairs.cli import app as s2pairs

ORDER = [band.name for band in BANDS if band.name != "B10"]
RGBN = ("B04", "B03", "B02", "B08")
ASKED = ("Boadella_2020-06-21.tif", "Boadella_2021-07-21.tif")
"""Clear looks, in summer."""


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the products of a made landscape and their cube."""
    folder = tmp_path_factory.mktemp("landscape")
    tiles, products, cube = folder / "tiles.txt", folder / "products", folder / "cube.zarr"
    tiles.write_text("31TDG\n")
    _run(
        *(s2pairs, "simulate", "--tiles", tiles, "--out", products, "--size", 1024),
        *("--dates", 3, "--cloudy-dates", 0, "--start", "2019-03-01", "--end", "2019-12-01"),
    )
    _run(
        *(s2pairs, "build", "--tiles", tiles, "--source", f"safe:{products}"),
        *("--out", cube, "--dates", 3),
    )
    return folder


@pytest.fixture(scope="module")
def artifact(landscape: Path) -> Artifact:
    """Trained on it, no real pixel, for minutes; or that of CROSSMI_PIXEL_MODEL."""
    if given := os.environ.get("CROSSMI_PIXEL_MODEL"):
        return Artifact.load(Path(given))
    _run(
        *(mimodel, "train", "--out", landscape / "run", "--config", "configs/data/sentinel2.yaml"),
        *("--config", "configs/method/pixels.yaml", "--config", "configs/quick.yaml"),
        *("--set", f"data.cube={landscape / 'cube.zarr'}", "--set", "data.turn=true"),
        *("--set", "training.iterations=600", "--set", "training.batch_size=32"),
    )
    return Artifact.load(landscape / "run" / "artifact")


def _run(app: Typer, *words: object) -> None:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_likeness_separates_the_land_cover_of_a_made_landscape(
    artifact: Artifact, landscape: Path
) -> None:
    """On ground that was not trained on, from one date to another, ahead of every distance. At one
    date a made class is nearly a colour, and the map is no better than that (docs/results.md)."""
    truth = landscape / "products" / "truth" / "landcover"
    scenes = labelled_scenes(
        landscape / "cube.zarr", truth, bands=RGBN, size=128, dates=2, min_valid=0.9
    )
    found = separation(artifact, scenes, report=lambda *_: None)
    print(f"\n{found.to_markdown()}")
    leads = {lead.likeness: lead for lead in found.leads if lead.image == OTHER}
    assert len(leads) == 3
    assert all(lead.low > 0 for lead in leads.values())


@pytest.mark.slow
@pytest.mark.realdata
def test_likeness_to_water_shows_the_reservoir(
    artifact: Artifact, crossmi_data: Path, tmp_path: Path
) -> None:
    """Against what the green and the near infrared say, and beside likenesses without a model."""
    looks, index = [], []
    for name in ASKED:
        with rasterio.open(crossmi_data / "s2" / "eotdl_boadella" / name) as file:
            numbers = file.read().astype(np.float32)
        numbers[numbers == 0] = np.nan
        green, infrared = (numbers[ORDER.index(band)] for band in ("B03", "B08"))
        index.append((green - infrared) / (green + infrared))
        looks.append(numbers[[ORDER.index(band) for band in RGBN]] / 10_000)
    water, land = (np.all([test(one) for one in index], 0) for test in (_is_water, _is_land))
    label = np.where(water, 0, np.where(land, 1, -1))
    scene = LabelledScene(np.stack(looks), label, "31TDG", ("water", "land"))
    found = separation(artifact, [scene], stride=6, queries=10, report=lambda *_: None)
    (tmp_path / "reservoir.md").write_text(found.to_markdown())
    _draw(artifact, looks[0], water, tmp_path / "reservoir.png")
    print(f"\n{found.to_markdown()}\nlook at {tmp_path / 'reservoir.png'}")
    of_water = found.by_class["water"]
    assert of_water["mutual information"] > 0.95
    areas = {(area.likeness, area.image): area.area for area in found.areas}
    assert areas["mutual information", SAME] > areas["raw reflectance", SAME]
    for image in (SAME, OTHER):
        assert areas["mutual information", image] > areas["band statistics", image]


def _is_water(index: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    return index > 0.1


def _is_land(index: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    return index < 0


def _draw(
    artifact: Artifact, look: npt.NDArray[np.float32], water: npt.NDArray[np.bool_], path: Path
) -> None:
    """The scene, the map of a pixel in the middle of the water, and the water."""
    row, col = map(int, np.unravel_index(distance_transform_edt(water).argmax(), water.shape))
    found = PreparedImage(artifact, look, stride=3).mean_map([(row, col)]).to_image()
    colours = np.clip(look[:3].transpose(1, 2, 0) / np.nanpercentile(look[:3], 99), 0, 1)
    figure = Figure(figsize=(12, 4.2))
    axes = figure.subplots(1, 3)
    shown = (colours, "true colour"), (found, "likeness to the circled pixel"), (water, "water")
    for axis, (image, title) in zip(axes, shown, strict=True):
        axis.imshow(np.nan_to_num(image) if image.ndim == 3 else image)
        axis.plot(col, row, "o", markersize=8, markerfacecolor="none", color="red")
        axis.set_title(title)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
