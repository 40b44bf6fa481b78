"""A similarity map as a PNG, written with the standard library alone, or as a GeoTIFF."""

import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from service.decode import Georeference

# Viridis (CC0, by Smith and van der Walt) at sixteenths; between them it is nearly linear.
_ANCHORS = np.array(
    [
        *[(68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134)],
        *[(59, 82, 139), (51, 99, 141), (44, 114, 142), (38, 130, 142)],
        *[(33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115)],
        *[(94, 201, 98), (132, 212, 75), (173, 220, 48), (216, 226, 25), (253, 231, 37)],
    ],
    np.float64,
)
_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)


def map_png(
    scores: npt.NDArray[np.float32],
    queries: Sequence[tuple[int, int]],
    area: npt.NDArray[np.bool_] | None = None,
) -> bytes:
    """RGBA picture (H, W) of scores in viridis from their lowest to their highest.

    NaN is transparent. Each query pixel (row, column) stands in the middle of a ring; an `area`
    (H, W) that was the query is outlined.
    """
    picture = np.zeros((*scores.shape, 4), np.uint8)
    valid = np.isfinite(scores)
    picture[valid, :3] = viridis(_unit_range(scores[valid]))
    picture[valid, 3] = 255
    for query in queries:
        _draw_ring(picture, query)
    if area is not None:
        _draw_outline(picture, area)
    return png(picture)


def map_geotiff(
    layers: Sequence[npt.NDArray[np.float32]],
    descriptions: Sequence[str],
    ground: Georeference | None,
    tags: Mapping[str, str],
) -> bytes:
    """Maps (H, W) as the bands of a GeoTIFF of float32, NaN where there is no data."""
    from rasterio.crs import CRS
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    height, width = layers[0].shape
    placed: dict[str, object] = {}
    if ground is not None:
        by_points = {"gcps": list(ground.points)}
        by_transform = {"transform": Affine(*ground.transform)}
        # Points are written with a system, if an empty one: rasterio asks it for its text.
        system = ground.crs or (CRS() if ground.points else None)
        placed = {"crs": system, **(by_points if ground.points else by_transform)}
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(
            driver="GTiff", width=width, height=height, count=len(layers), dtype="float32",
            nodata=np.nan, compress="deflate", predictor=3, **placed,
        ) as dataset:  # fmt: skip
            dataset.update_tags(**tags)
            for band, (layer, text) in enumerate(zip(layers, descriptions, strict=True), start=1):
                dataset.write(layer, band)
                dataset.set_band_description(band, text)
        return bytes(file.getbuffer())


def viridis(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Colours (..., 3) of values from 0 to 1."""
    places = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(values, places, channel) for channel in _ANCHORS.T]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, -1)).astype(np.uint8)
    return colours


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of an RGBA picture (H, W, 4), 8 bits a channel (ISO/IEC 15948)."""
    height, width, _ = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    # Each row begins with the number of its filter; 0 is none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes(), 6), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def _unit_range(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    if not values.size:
        return values
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / (high - low if high > low else 1.0))


def _draw_ring(picture: npt.NDArray[np.uint8], query: tuple[int, int]) -> None:
    """White between two black lines, which is seen on every colour."""
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    distance = np.hypot(rows - query[0], columns - query[1])
    picture[(distance > 2.5) & (distance <= 6.5)] = _BLACK
    picture[(distance > 3.5) & (distance <= 5.5)] = _WHITE


def _draw_outline(picture: npt.NDArray[np.uint8], area: npt.NDArray[np.bool_]) -> None:
    """White pixels inside, black ones outside, so that it is seen on every colour."""
    for inside, colour in ((area, _WHITE), (~area, _BLACK)):
        padded = np.pad(inside, 1, mode="edge")
        height, width = inside.shape
        neighbours = [
            padded[down : down + height, right : right + width]
            for down, right in ((0, 1), (2, 1), (1, 0), (1, 2))
        ]
        picture[inside & ~np.logical_and.reduce(neighbours)] = colour
