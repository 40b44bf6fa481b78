"""Genuine GeoTIFFs through the service, against an independent reading by rasterio."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import rasterio
from PIL import Image

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from tests.models import BANDS
from tests.service.test_http import AS_NPY, TIFF, array_of, refused

pytestmark = pytest.mark.realdata

EUROSAT = "B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A"
L2A = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"


def reflectance_of(path: Path, names: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The model's bands (band, H, W), read one by one."""
    with rasterio.open(path) as dataset:
        bands = [dataset.read(names.split(",").index(band) + 1) for band in BANDS]
    return np.stack(bands).astype(np.float32) * np.float32(1e-4)


def test_eurosat_patches_are_embedded(
    client: httpx.Client, artifact: Artifact, crossmi_data: Path
) -> None:
    paths = sorted((crossmi_data / "eurosat_ms_samples").glob("*.tif"))
    assert paths
    embed = embedder(artifact, "shared", Backend.FOLDED)
    for path in paths:
        query = {"bands": EUROSAT, "scale": 1e-4}
        answer = client.post(
            "/embed", params=query, content=path.read_bytes(), headers=TIFF | AS_NPY
        )
        expected = embed(reflectance_of(path, EUROSAT)[None])
        assert array_of(answer).tobytes() == expected.tobytes()
    # Without names thirteen bands are not the model's four.
    answer = client.post("/embed?scale=0.0001", content=paths[0].read_bytes(), headers=TIFF)
    refused(answer, 422, "expected 4 bands (B04, B03, B02, B08), got 13")


def test_a_map_of_a_real_scene(client: httpx.Client, crossmi_data: Path) -> None:
    path = crossmi_data / "s2/eotdl_boadella/Boadella_2021-07-21.tif"
    query = {"bands": L2A, "scale": 1e-4, "row": 100, "col": 100, "stride": 40}
    # 377 x 380 pixels are over the limit of the test's service, and its 12 bands over its bytes.
    refused(client.post("/similarity", params=query, content=path.read_bytes(), headers=TIFF), 413)
    with rasterio.open(path) as dataset:
        window = rasterio.windows.Window(50, 60, 180, 190)
        profile = dataset.profile | {"width": 180, "height": 190}
        with rasterio.MemoryFile() as file:
            with file.open(**profile) as part:
                part.write(dataset.read(window=window))
            body = bytes(file.getbuffer())
    answer = client.post(
        "/similarity", params=query, content=body, headers=TIFF | {"Accept": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (180, 190)
