"""The masks of made Level-1C products as files, shaped like those of genuine ones.

Before processing baseline 04.00 they are polygons, traced along the cells of 60 m, from it on
layers of 60 m. Both say the same of every pixel. Of the outlines of detectors those of the 60 m
bands are written, as if one detector had seen all; masks of defects and of quality are left out.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS
from s2pairs.errors import S2PairsError
from s2pairs.safe_metadata import FIRST_BASELINE_WITH_OFFSET, L1CProduct

_CELL_M = 60
_DETECTOR = 6
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xmlns:gml="http://www.opengis.net/gml/3.2" gml:id="{name}">
  <gml:name>{kind} pixels mask from data-strip {name}</gml:name>
"""
_BOUNDS = """  <gml:boundedBy>
    <gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7:{epsg}">
      <gml:lowerCorner>{left} {bottom}</gml:lowerCorner>
      <gml:upperCorner>{right} {top}</gml:upperCorner>
    </gml:Envelope>
  </gml:boundedBy>
"""
_FEATURE = """    <eop:MaskFeature gml:id="{identifier}">
      <eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{type}</eop:maskType>
      <eop:extentOf>
        <gml:Polygon gml:id="{identifier}_Polygon">
{rings}
        </gml:Polygon>
      </eop:extentOf>
    </eop:MaskFeature>
"""
_RING = """          <gml:{side}>
            <gml:LinearRing>
              <gml:posList srsDimension="2">{corners}</gml:posList>
            </gml:LinearRing>
          </gml:{side}>"""

Cells = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class L1CMasks:
    """What the provider says of the pixels of a product, in cells of 60 m (`product.shape(60)`)."""

    opaque: Cells
    cirrus: Cells
    snow: Cells
    seen: Cells
    """Where a detector saw the ground."""


_one_tracing = threading.Lock()
"""rasterio silences a warning of its own for the whole process while it traces: of two threads, one
would see it."""


def mask_files(product: L1CProduct, masks: L1CMasks) -> dict[str, bytes]:
    """The content of each mask by its path inside the product."""
    for name, cells in vars(masks).items():
        if cells.shape != product.shape(_CELL_M):
            raise S2PairsError(
                f"the mask {name} must have the shape {product.shape(_CELL_M)}, got {cells.shape}"
            )
    coarse = [each for each in BANDS if each.resolution_m == _CELL_M]
    folder = f"GRANULE/{product.granule}/QI_DATA"
    if product.baseline < FIRST_BASELINE_WITH_OFFSET:
        seen = {"DETECTOR_FOOTPRINT": masks.seen}
        clouds = {"OPAQUE": masks.opaque, "CIRRUS": masks.cirrus}
        return {
            f"{folder}/MSK_CLOUDS_B00.gml": _gml(product, "MSK_CLOUDS", "B00", clouds),
            **{
                f"{folder}/MSK_DETFOO_{each.name}.gml": _gml(product, "MSK_DETFOO", each.name, seen)
                for each in coarse
            },
        }
    classes = np.stack([masks.opaque, masks.cirrus, masks.snow]).astype(np.uint8)
    detectors = _jp2(product, masks.seen[None].astype(np.uint8) * np.uint8(_DETECTOR))
    return {
        f"{folder}/MSK_CLASSI_B00.jp2": _jp2(product, classes),
        **{f"{folder}/MSK_DETFOO_{each.name}.jp2": detectors for each in coarse},
    }


def _gml(product: L1CProduct, kind: str, band: str, cells: Mapping[str, Cells]) -> bytes:
    name = f"{product.spacecraft}_OPER_{kind}_SIM__{product.granule}_{band}_MSIL1C"
    found = [(mask, rings) for mask in cells for rings in _outlines(product, cells[mask])]
    text = _HEAD.format(name=name, kind=kind)
    if found:
        corners = np.array([corner for _, rings in found for corner in rings[0]])
        (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
        text += _BOUNDS.format(
            epsg=product.tile.epsg, left=left, bottom=bottom, right=right, top=top
        )
        text += "  <eop:maskMembers>\n"
        for number, (mask, rings) in enumerate(found):
            sides = ["exterior", *["interior"] * (len(rings) - 1)]
            written = [
                _RING.format(side=side, corners=" ".join(f"{x} {y}" for x, y in ring))
                for side, ring in zip(sides, rings, strict=True)
            ]
            text += _FEATURE.format(
                identifier=f"{mask}.{number}", type=mask, rings="\n".join(written)
            )
        text += "  </eop:maskMembers>\n"
    return f"{text}</eop:Mask>\n".encode()


def _outlines(product: L1CProduct, cells: Cells) -> list[list[list[tuple[int, int]]]]:
    """The rings of each polygon along the borders of the cells, in metres; the first is outside."""
    from affine import Affine
    from rasterio.features import shapes

    left, top = product.tile.upper_left()
    to_ground = Affine(_CELL_M, 0, left, 0, -_CELL_M, top)
    with _one_tracing:
        traced = list(shapes(cells.astype(np.uint8), mask=cells, transform=to_ground))
    return [
        [[(round(x), round(y)) for x, y in ring] for ring in shape["coordinates"]]
        for shape, _ in traced
    ]


def _jp2(product: L1CProduct, layers: npt.NDArray[np.uint8]) -> bytes:
    from affine import Affine
    from rasterio.io import MemoryFile

    left, top = product.tile.upper_left()
    with MemoryFile(ext=".jp2") as memory:
        with memory.open(
            driver="JP2OpenJPEG",
            height=layers.shape[1],
            width=layers.shape[2],
            count=layers.shape[0],
            dtype="uint8",
            crs=f"EPSG:{product.tile.epsg}",
            transform=Affine(_CELL_M, 0, left, 0, -_CELL_M, top),
            QUALITY=100,
            REVERSIBLE="YES",
            YCC="NO",  # a change of colours would mix the layers
        ) as image:
            image.write(layers)
        return bytes(memory.getbuffer())
