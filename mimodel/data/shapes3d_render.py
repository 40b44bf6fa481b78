"""The scene of 3D Shapes (Burgess and Kim 2018), rendered anew with `mujoco` as layers to tint.

The room, camera and lights are a fit to 50 published samples of the data set; the faint pattern on
its walls and floor is left out. Each of the 480 views has 1,000 colourings. The lights are white,
so a channel of a pixel depends only on the surface it shows and on that channel of the surface's
colour, which takes one of six levels in all ten hues. A view is therefore rendered once a level;
adding the layers of the levels that a colouring asks for keeps highlights and over-exposed pixels
as they are in a rendering of the coloured scene.
"""

import hashlib
import itertools
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mimodel.errors import DataError

SHAPES = ("cube", "cylinder", "sphere", "capsule")
SCALES = tuple(np.linspace(0.75, 1.25, 8).tolist())
ORIENTATIONS = tuple(np.linspace(-30, 30, 15).tolist())
"""Degrees by which the camera has gone round the room."""
VIEWS = tuple(itertools.product(range(len(SCALES)), range(len(SHAPES)), range(len(ORIENTATIONS))))
"""Indices of scale, shape and orientation in the order of the data set, the last fastest."""
SURFACES = ("floor", "wall", "object")
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""What red, green and blue can be in ten evenly spaced, fully saturated hues."""
SKY_RGB = (153, 226, 249)
SIDE = 64
STEPS = 8
"""Layers are kept in eighths of a grey level: their rounding stays below that of the image."""

# The fit. Lengths in units of the room's drawing, angles in degrees.
_ROOM_HALF, _WALL_HEIGHT = 3.5, 2.0
_CAMERA_RADIUS, _CAMERA_HEIGHT, _CAMERA_DOWN, _CAMERA_FOVY = 2.5, 0.75, 0.8, 50.0
_HEADLIGHT_AMBIENT, _HEADLIGHT_DIFFUSE = 0.358, 0.587
_SPOT_AT, _SPOT_DIFFUSE, _SPOT_SPECULAR = (-1.463, 0.512, 7.118), 0.991, 0.329
_SPOT_CUTOFF, _SPOT_EXPONENT = 45.0, 10.0
_OBJECT_SPECULAR, _OBJECT_SHININESS = 0.5, 0.0
# MuJoCo lights the corners of a plane's tiles and blends between them, so the size of a tile shows.
_TILE = 0.5
_RENDER_SIDE = 192
"""Three times the image, without multisampling; Lanczos reduces it, as the samples suggest."""
_GEOMS = {
    "cube": ("box", (0.35, 0.35, 0.35), 0.35),
    "cylinder": ("cylinder", (0.375, 0.375), 0.375),
    "sphere": ("sphere", (0.425,), 0.425),
    "capsule": ("capsule", (0.325, 0.325), 0.65),
}
"""MuJoCo's geom, its size, and the height of its centre when it stands on the floor, at scale 1."""


@dataclass(frozen=True, eq=False)
class Layers:
    """What each surface adds to each view, in eighths of a grey level (may undershoot 0)."""

    shade: npt.NDArray[np.int16]
    """(view, surface, level, row, col)"""
    sky: npt.NDArray[np.int16]
    """(view, row, col): how much of the pixel is sky, where 8 x 255 is all of it."""


def render_layers(report: Callable[[str], None]) -> Layers:
    """All 480 views, in minutes. Sets MUJOCO_GL to egl on Linux where it is not set.

    `DataError` where there is no OpenGL to render with.
    """
    shade = np.zeros((len(VIEWS), len(SURFACES), len(LEVELS), SIDE, SIDE), np.int16)
    sky = np.zeros((len(VIEWS), SIDE, SIDE), np.int16)
    for first in range(0, len(VIEWS), len(ORIENTATIONS)):
        scale, shape, _ = VIEWS[first]
        with _stage(scale, shape) as stage:
            for orientation in range(len(ORIENTATIONS)):
                shade[first + orientation], sky[first + orientation] = _view(stage, orientation)
        if shape == len(SHAPES) - 1:
            report(f"rendered {first + len(ORIENTATIONS)} of {len(VIEWS)} views")
    return Layers(shade, sky)


def render_view(scale: int, shape: int, orientation: int) -> Layers:
    """One view alone, as a `Layers` of one; factors by index."""
    with _stage(scale, shape) as stage:
        shade, sky = _view(stage, orientation)
    return Layers(shade[None], sky[None])


def render_image(
    scale: int, shape: int, orientation: int, colours: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """One coloured image (64, 64, 3) without layers; `colours` is (surface, rgb) from 0 to 1."""
    from PIL import Image

    with _stage(scale, shape) as stage:
        large = Image.fromarray(stage.draw(orientation, colours))
    return np.asarray(large.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def save_layers(layers: Layers, file: Path) -> None:
    """Whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, shade=layers.shade, sky=layers.sky, scene=scene_digest())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def load_layers(file: Path) -> Layers:
    """What `save_layers` wrote; `DataError` if damaged, or of another scene than this code's."""
    again = "; delete it and `mimodel data shapes3d --to FOLDER` renders it again"
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            scene, layers = str(arrays["scene"]), Layers(arrays["shade"], arrays["sky"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read the layers {file}: {error}{again}") from error
    shape = (len(VIEWS), len(SURFACES), len(LEVELS), *layers.sky.shape[1:])
    if scene != scene_digest():
        raise DataError(f"{file} was rendered from another scene than this version's{again}")
    if layers.shade.shape != shape or layers.sky.shape[:1] != shape[:1]:
        raise DataError(
            f"{file} holds layers {layers.shade.shape} and sky {layers.sky.shape}, not of "
            f"{len(VIEWS)} views{again}"
        )
    return layers


def scene_digest() -> str:
    """SHA-256 of all that is rendered: layers of another scene are another data set."""
    scenes = itertools.product(range(len(SCALES)), range(len(SHAPES)))
    text = "".join(_scene(scale, shape) for scale, shape in scenes)
    return hashlib.sha256(f"{text}{SKY_RGB}{STEPS}{LEVELS}".encode()).hexdigest()


def _view(stage: "_Stage", orientation: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Layers (surface, level, row, col) and sky (row, col) of one view."""
    # Three levels a render: one in red, one in green, one in blue, of every surface.
    levels = np.array(LEVELS).reshape(2, 1, 3)
    drawn = [stage.draw(orientation, np.repeat(rgb, len(SURFACES), 0)) for rgb in levels]
    by_level = np.concatenate(drawn, 2).transpose(2, 0, 1)
    shown = stage.surfaces(orientation)
    shade = [[_reduced(grey * (shown == s)) for grey in by_level] for s in range(len(SURFACES))]
    return np.array(shade), _reduced(255 * (shown == len(SURFACES)))


def _reduced(grey: npt.NDArray[np.integer]) -> npt.NDArray[np.int16]:
    """(192, 192) of 0..255 to (64, 64) of eighths; in floats, for layers must not be clipped."""
    from PIL import Image

    large = Image.fromarray(grey.astype(np.float32))
    small = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    eighths: npt.NDArray[np.int16] = np.rint(small * STEPS).astype(np.int16)
    return eighths


class _Stage:
    """The room with one object, ready to be drawn from every side."""

    def __init__(self, model: Any, data: Any, renderer: Any) -> None:
        self._model, self._data, self._renderer = model, data, renderer

    def draw(self, orientation: int, colours: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """(192, 192, 3); `colours` is (surface, rgb) from 0 to 1."""
        self._model.mat_rgba[:, :3] = colours
        self._renderer.update_scene(self._data, orientation)
        image: npt.NDArray[np.uint8] = self._renderer.render()
        return image

    def surfaces(self, orientation: int) -> npt.NDArray[np.int64]:
        """(192, 192): the index of the surface that each pixel shows, 3 for the sky."""
        self._renderer.enable_segmentation_rendering()
        try:
            self._renderer.update_scene(self._data, orientation)
            geom = self._renderer.render()[:, :, 0]
        finally:
            self._renderer.disable_segmentation_rendering()
        shown: npt.NDArray[np.int64] = np.append(self._model.geom_matid, len(SURFACES))[geom]
        return shown  # -1, no geom, took the last entry


@contextmanager
def _stage(scale: int, shape: int) -> Iterator[_Stage]:
    mujoco = _mujoco()
    model = mujoco.MjModel.from_xml_string(_scene(scale, shape))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    try:
        renderer = mujoco.Renderer(model, _RENDER_SIDE, _RENDER_SIDE)
    except (mujoco.FatalError, ImportError, AttributeError, RuntimeError) as error:
        raise _no_opengl(error) from error
    try:
        yield _Stage(model, data, renderer)
    finally:
        renderer.close()


def _mujoco() -> Any:
    """The package, which picks its OpenGL when it is imported."""
    with suppress(ImportError):
        # Mesa's OpenGL and triton bring an LLVM each, and triton's must be loaded first: else the
        # process dies when torch compiles something after a rendering.
        import triton  # noqa: F401
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ModuleNotFoundError:
        raise  # the command line says which package to install
    except (ImportError, AttributeError, RuntimeError) as error:  # also those of PyOpenGL
        raise _no_opengl(error) from error
    return mujoco


def _no_opengl(error: Exception) -> DataError:
    return DataError(
        f"no OpenGL to render 3D Shapes with ({error}); install libegl1 "
        "(`apt-get install libegl1`), or put 3dshapes.h5 into the folder"
    )


def _scene(scale: int, shape: int) -> str:
    """MuJoCo's XML of the room with one object and a camera for each orientation.

    A camera without `fovy` would take MuJoCo's own, and a multisampled one would soften the edges
    that Lanczos then sharpens.
    """
    kind, size, height = _GEOMS[SHAPES[shape]]
    factor = SCALES[scale]
    sky = _numbers((channel + 0.5) / 255 for channel in SKY_RGB)  # MuJoCo rounds down
    return f"""<mujoco>
  <visual>
    <headlight ambient="{_grey(_HEADLIGHT_AMBIENT)}" diffuse="{_grey(_HEADLIGHT_DIFFUSE)}"
      specular="0 0 0"/>
    <quality shadowsize="1024" offsamples="0"/>
    <global offwidth="{_RENDER_SIDE}" offheight="{_RENDER_SIDE}"/>
    <map znear="0.01" zfar="50"/>
  </visual>
  <statistic extent="1" center="0 0 0"/>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="{sky}" rgb2="{sky}" width="64" height="64"/>
    <material name="floor" specular="0" shininess="0"/>
    <material name="wall" specular="0" shininess="0"/>
    <material name="object" specular="{_OBJECT_SPECULAR}" shininess="{_OBJECT_SHININESS}"/>
  </asset>
  <worldbody>
    <light pos="{_numbers(_SPOT_AT)}" dir="0 0 -1" diffuse="{_grey(_SPOT_DIFFUSE)}"
      specular="{_grey(_SPOT_SPECULAR)}" ambient="0 0 0" cutoff="{_SPOT_CUTOFF}"
      exponent="{_SPOT_EXPONENT}" castshadow="true"/>
    <geom type="plane" material="floor" size="{_numbers((_ROOM_HALF, _ROOM_HALF, _TILE))}"/>
    {_walls()}
    <geom type="{kind}" material="object" pos="{_numbers((0, 0, height * factor))}"
      size="{_numbers(length * factor for length in size)}"/>
    {_cameras()}
  </worldbody>
</mujoco>"""


def _walls() -> str:
    half = _WALL_HEIGHT / 2
    sides = {(1, 0): (half, _ROOM_HALF), (0, 1): (_ROOM_HALF, half)}
    return "".join(
        f'<geom type="plane" material="wall" size="{_numbers((*size, _TILE))}" '
        f'pos="{_numbers((sign * x * _ROOM_HALF, sign * y * _ROOM_HALF, half))}" '
        f'zaxis="{_numbers((-sign * x, -sign * y, 0))}"/>'
        for (x, y), size in sides.items()
        for sign in (-1, 1)
    )


def _cameras() -> str:
    """On a circle round the room's middle, looking at its axis and a little down."""
    down = math.radians(_CAMERA_DOWN)
    text = ""
    for angle in map(math.radians, ORIENTATIONS):
        sin, cos = math.sin(angle), math.cos(angle)
        at = (_CAMERA_RADIUS * sin, -_CAMERA_RADIUS * cos, _CAMERA_HEIGHT)
        up = (-sin * math.sin(down), cos * math.sin(down), math.cos(down))
        text += (
            f'<camera pos="{_numbers(at)}" xyaxes="{_numbers((cos, sin, 0, *up))}" '
            f'fovy="{_CAMERA_FOVY}"/>'
        )
    return text


def _grey(value: float) -> str:
    return _numbers((value,) * 3)


def _numbers(values: "Sequence[float] | Iterator[float]") -> str:
    return " ".join(f"{value:.9g}" for value in values)
