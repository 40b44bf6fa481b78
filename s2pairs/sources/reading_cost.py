"""What reading windows of band files takes, by the way such files are coded. None is opened."""

from collections.abc import Sequence

from s2pairs.bands import BANDS
from s2pairs.cost import ReadCost
from s2pairs.scenes import Grid, PixelWindow
from s2pairs.tiles import PIXEL_SIZE_M

_JP2_BLOCKS_PX = {1: 1024, 2: 640, 6: 192}
"""Side of a coded block in the provider's files, by the step of the band."""
_COG_BLOCK_PX = 1024
_BITS_A_PIXEL = {True: 8, False: 13}
"""Of JPEG 2000 and of deflated GeoTIFF, where nobody says how large a file is: about right."""
_STEPS = {each.name: each.resolution_m // PIXEL_SIZE_M for each in BANDS}
_CLASSES_STEP = 2
_SAMPLE_PX = 256  # what is looked at before dates are chosen


def cost_of_image(
    file: str,
    name: str,
    grid: Grid,
    windows: Sequence[PixelWindow],
    *,
    size: int | None,
    over_http: bool,
) -> ReadCost:
    """Of reading windows from the file of one band (or `SCL`) after opening it once.

    `file` tells by its name how it is coded: `.jp2`, else a GeoTIFF for the cloud. `size` is in
    bytes, None where nobody says it.
    """
    jp2 = file.lower().endswith((".jp2", ".j2k"))
    step = _STEPS.get(name, _CLASSES_STEP)
    side = _JP2_BLOCKS_PX[step] if jp2 else _COG_BLOCK_PX
    rows, columns = -(-grid.height // step), -(-grid.width // step)
    touched = touched_blocks(windows, step, (side, side))
    pixels = pixels_of(touched, (rows, columns), (side, side))
    in_all = rows * columns * _BITS_A_PIXEL[jp2] // 8 if size is None else size
    read = in_all * pixels // (rows * columns)
    return ReadCost(
        bytes=read,
        pixels=pixels,
        requests=_requests(jp2, touched, -(-columns // side)) if over_http else 0,
        assumed_bytes=read if size is None else 0,
    )


def cost_of_a_look(
    file: str, name: str, grid: Grid, *, size: int | None, over_http: bool
) -> ReadCost:
    """Of finding the end of a file and reading some pixels in its middle."""
    top, left = (max(0, (side - _SAMPLE_PX) // 2) for side in (grid.height, grid.width))
    height, width = (min(_SAMPLE_PX, side) for side in (grid.height, grid.width))
    middle = [PixelWindow(top, left, height, width)]
    sample = cost_of_image(file, name, grid, middle, size=size, over_http=over_http)
    return sample + ReadCost(bytes=0, pixels=0, requests=2 * over_http)


def _requests(jp2: bool, touched: set[tuple[int, int]], columns: int) -> int:
    """By HTTP, of opening a file and reading these blocks, as GDAL does it.

    The beginning is one. The blocks of a JPEG 2000 file stand row after row, each behind a head
    that says where the next one begins: a block is two requests, one that is passed over one. A
    GeoTIFF has one table of them all, which is one request more.
    """
    if not jp2:
        return 2 + len(touched)
    last = max(row * columns + column for row, column in touched)
    return 1 + 2 * len(touched) + (last + 1 - len(touched))


def touched_blocks(
    windows: Sequence[PixelWindow], step: int, block: tuple[int, int]
) -> set[tuple[int, int]]:
    """Blocks (height, width) of an image that windows of 10 m pixels touch.

    The image's own pixels are `step` times 10 m.
    """
    height, width = (side * step for side in block)
    return {
        (row, col)
        for window in windows
        for row in range(window.row // height, (window.row + window.height - 1) // height + 1)
        for col in range(window.col // width, (window.col + window.width - 1) // width + 1)
    }


def pixels_of(blocks: set[tuple[int, int]], shape: tuple[int, int], block: tuple[int, int]) -> int:
    """How many pixels of an image (height, width) lie in these of its blocks (height, width)."""
    rows, columns = (
        [min(side, length - start) for start in range(0, length, side)]
        for length, side in zip(shape, block, strict=True)
    )
    return sum(rows[row] * columns[column] for row, column in blocks)
