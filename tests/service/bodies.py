"""Uploads as real bytes: good ones, and ones that lie."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def unspeakable_tiff() -> bytes:
    """A GeoTIFF that GDAL reads with a warning, which repeats what stands in it and is no UTF-8."""
    body = geotiff_bytes(np.zeros((4, 64, 64), np.float32), ["red"])
    assert body.count(b"</GDALMetadata") == 1
    return body.replace(b"</GDALMetadata", b"<\xc3GDALMetadata")


def npy_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file whose header is `text`, without pixels."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


def geotiff_bytes(
    image: npt.NDArray[np.generic],
    descriptions: Sequence[str] = (),
    nodata: float | None = None,
    driver: str = "GTiff",
    *,
    alpha: bool = False,
    points: Sequence[GroundControlPoint] = (),
    **options: object,
) -> bytes:
    """A raster file of an image (band, H, W), written by rasterio; its last band may be alpha.

    With `points` these say where it lies, and no transform.
    """
    count, height, width = image.shape
    transform = Affine(10, 0, 500_000, 0, -10, 4_800_000)
    with MemoryFile() as file:
        with file.open(
            driver=driver,
            width=width,
            height=height,
            count=count,
            dtype=image.dtype,
            nodata=nodata,
            crs="EPSG:32631",
            **({"gcps": points} if points else {"transform": transform}),
            **options,
        ) as dataset:
            if alpha:
                dataset.colorinterp = [ColorInterp.undefined] * (count - 1) + [ColorInterp.alpha]
            dataset.write(image)
            for band, description in enumerate(descriptions, start=1):
                dataset.set_band_description(band, description)
        return bytes(file.getbuffer())


def directory_of(tiff: bytes) -> range:
    """Where the first directory of a little-endian classic TIFF stands, without its entries' count.

    Its last four bytes say where the next one stands, 0 where there is none.
    """
    (start,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, start)
    return range(start + 2, start + 2 + 12 * entries + 4)


def with_another_directory(tiff: bytes, at: int) -> bytes:
    """The TIFF, which says that a second directory stands at that byte."""
    last = directory_of(tiff).stop
    return tiff[: last - 4] + struct.pack("<I", at) + tiff[last:]


def tiled_tiff(
    size: int, block: int, tile: bytes, tiles: int, *, samples: int = 4, deflate: bool = True
) -> bytes:
    """A little-endian TIFF of uint16 samples whose header says what it likes.

    The image claims size x size pixels in tiles of block x block; each of `tiles` tiles is the same
    piece of the file, so that a few bytes can claim any amount.
    """
    tags = [
        (256, 4, [size]),
        (257, 4, [size]),
        (258, 3, [16] * samples),
        (259, 3, [8 if deflate else 1]),
        (262, 3, [1]),
        (277, 3, [samples]),
        (284, 3, [1]),
        (322, 4, [block]),
        (323, 4, [block]),
        (324, 4, [8] * tiles),
        (325, 4, [len(tile)] * tiles),
        (339, 3, [1] * samples),
    ]
    directory_at = 8 + len(tile) + len(tile) % 2
    values_at = directory_at + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) <= 4:
            entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<HHII", tag, kind, len(numbers), values_at + len(values))
            values += packed
    head = struct.pack("<2sHI", b"II", 42, directory_at) + tile.ljust(directory_at - 8, b"\0")
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def tiff_of_640_gigabytes() -> bytes:
    """A few tens of KB that claim 282,624 x 282,624 pixels of 4 bands of 16 bits."""
    block = 8192
    tiles = (282_624 // block + 1) ** 2
    return tiled_tiff(282_624, block, zlib.compress(bytes(1024)), tiles)


def tiff_of_a_huge_block() -> bytes:
    """64 x 64 pixels in one block of 16384 x 16384, whose 2 GiB compress to 2 MB."""
    return tiled_tiff(64, 16384, deflated_zeros(16384 * 16384 * 8), 1)


def deflated_zeros(count: int) -> bytes:
    """A zlib stream of `count` zeros, a multiple of 2^24; made from one piece, so at once."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler = (count % 65521) << 16 | 1
    return b"\x78\xda" + piece * (count >> 24) + packer.flush() + struct.pack(">I", adler)


def vrt_of(path: str) -> bytes:
    """A VRT that would read 64 x 64 pixels of another file."""
    band = (
        '<VRTRasterBand dataType="Byte" band="{}"><SimpleSource><SourceFilename relativeToVRT="0">'
        + path
        + "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands = "".join(band.format(number) for number in range(1, 5))
    return f'<VRTDataset rasterXSize="64" rasterYSize="64">{bands}</VRTDataset>'.encode()


def raw_vrt_of(path: str) -> bytes:
    """A VRT that would take the bytes of any file for pixels."""
    band = (
        '<VRTRasterBand dataType="Byte" band="{}" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{path}</SourceFilename></VRTRasterBand>'
    )
    bands = "".join(band.format(number) for number in range(1, 5))
    return f'<VRTDataset rasterXSize="64" rasterYSize="64">{bands}</VRTDataset>'.encode()


def mrf_of(path: str) -> bytes:
    """An MRF whose data file is another file."""
    return (
        '<MRF_META><Raster><Size x="64" y="64" c="4"/><PageSize x="64" y="64" c="4"/>'
        f"<Compression>NONE</Compression><DataFile>{path}</DataFile><IndexFile>{path}</IndexFile>"
        "</Raster></MRF_META>"
    ).encode()


def wms_of(url: str) -> bytes:
    """A description of a tile server that GDAL's WMS driver would call."""
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl>'
        "</Service><DataWindow><UpperLeftX>-1</UpperLeftX><UpperLeftY>1</UpperLeftY>"
        "<LowerRightX>1</LowerRightX><LowerRightY>-1</LowerRightY><SizeX>64</SizeX>"
        "<SizeY>64</SizeY></DataWindow><BandsCount>4</BandsCount></GDAL_WMS>"
    ).encode()
