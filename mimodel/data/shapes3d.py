"""3D Shapes (Burgess and Kim 2018): a room with one object, and pairs that share all but colours.

Images come from `3dshapes.h5` where it is at hand, and otherwise from our own rendering of its
scene (see `shapes3d_render`). The two images of a pair show the same scale, shape and orientation;
the hues of floor, wall and object are each image's own (Sanchez et al. 2019, section 5).
"""

import colorsys
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from mimodel.data import shapes3d_render as scene
from mimodel.data.pairs import LabelledImages, PairBatch
from mimodel.data.sums import check_sum, note_sum, sha256
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

NORMALISATION = Normalisation(bands=("red", "green", "blue"), mean=(0.5,) * 3, std=(0.5,) * 3)
"""From 0..1 to -1..1; ours, the paper does not say."""
_GREYS = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None, None], 3, 0)
_NORMALISED = torch.from_numpy(NORMALISATION(_GREYS)[0, 0])
"""What a byte becomes, the same in all three bands."""
SHARED = ("scale", "shape", "orientation")
H5_SHA256 = "0a0f6ed98baff276a50f3a081a7434d788da63cb135a98189b2a5b5769be1785"
HUES: Float[Tensor, "10 3"] = torch.tensor([colorsys.hsv_to_rgb(i / 10, 1, 1) for i in range(10)])
_H5, _UNPACKED, _LAYERS = "3dshapes.h5", "3dshapes.npy", "layers.npz"
_BLOCK = 1000
"""Images handled at a time where there are many."""


@dataclass(frozen=True)
class Shapes3D:
    """Which factors made which image: the values of each factor, the last one changing fastest."""

    values: Mapping[str, tuple[float, ...]]
    """By name, as the labels of the h5 have them."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.values.values())

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def factors(self, index: Int64[Tensor, " image"]) -> Int64[Tensor, "image factor"]:
        """The class of each factor, from 0."""
        return index[:, None] // self._steps % torch.tensor(self.sizes)

    def index(self, factors: Int64[Tensor, "image factor"]) -> Int64[Tensor, " image"]:
        return factors @ self._steps

    @property
    def _steps(self) -> Int64[Tensor, " factor"]:
        """How far apart the images of two neighbouring classes of a factor are."""
        return torch.tensor([math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))])

    def labels(self) -> npt.NDArray[np.float64]:
        """(image, factor): what the h5 must say."""
        grid = np.meshgrid(*self.values.values(), indexing="ij")
        return np.stack([values.ravel() for values in grid], 1)


TRUTH = Shapes3D(
    {
        **{f"{surface} hue": tuple(hue / 10 for hue in range(10)) for surface in scene.SURFACES},
        "scale": scene.SCALES,
        "shape": tuple(float(shape) for shape in range(len(scene.SHAPES))),
        "orientation": scene.ORIENTATIONS,
    }
)
VIEWS = len(scene.VIEWS)
"""Combinations of what a pair shares: image = colouring * VIEWS + view."""
COLOURINGS = len(TRUTH) // VIEWS


class Images(Protocol):
    """All images of a `Shapes3D`, by index."""

    @property
    def side(self) -> int: ...

    @property
    def origin(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the file that they come from."""
        ...

    def at(self, index: Int64[Tensor, " image"]) -> UInt8[Tensor, "image side side 3"]: ...


@final
class TintedImages:
    """Images put together from the layers of their view, on the device that holds these."""

    def __init__(
        self, layers: scene.Layers, digest: str, device: torch.device | str = "cpu"
    ) -> None:
        self._shade = torch.from_numpy(layers.shade).flatten(0, 2).to(device)  # layer row col
        rgb = torch.tensor(scene.SKY_RGB).view(3, 1, 1) / 255
        self._sky = (torch.from_numpy(layers.sky)[:, None] * rgb).round().short().to(device)
        self.side = layers.sky.shape[-1]
        self.origin = "rendered anew by mujoco from the scene fitted to it"
        self.digest = digest

    def at(self, index: Int64[Tensor, " image"]) -> UInt8[Tensor, "image side side 3"]:
        """Sums of the layers that each image's hues ask for, rounded and clipped."""
        view = index % VIEWS
        surfaces, levels = len(scene.SURFACES), len(scene.LEVELS)
        level = _HUE_LEVELS[TRUTH.factors(index)[:, :surfaces]]  # image surface channel
        layer = (view[:, None, None] * surfaces + torch.arange(surfaces)[:, None]) * levels + level
        view, layer = view.to(self._sky.device), layer.to(self._sky.device)
        steps = self._sky.index_select(0, view)  # image channel row col
        for chosen in layer.unbind(1):
            steps += self._shade.index_select(0, chosen.flatten()).view_as(steps)
        grey = (steps + scene.STEPS // 2) >> _STEP_BITS  # many times faster than a division
        return grey.clamp_(0, 255).byte().movedim(1, 3)


_HUE_LEVELS = (HUES * (len(scene.LEVELS) - 1)).round().long()
"""(hue, channel): which of the levels that layers have."""
_STEP_BITS = scene.STEPS.bit_length() - 1


@final
class UnpackedImages:
    """Images of the h5, from the file of plain bytes that it was unpacked to.

    They are held on `device` if that is a GPU with room for them; on a CPU the system keeps what it
    has read.
    """

    def __init__(
        self, file: Path, truth: Shapes3D = TRUTH, device: torch.device | str = "cpu"
    ) -> None:
        try:
            self._images = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"cannot read {file}: {error}; delete it and unpack again") from error
        if self._images.shape != (len(truth), 64, 64, 3) or self._images.dtype != np.uint8:
            raise DataError(
                f"{file} holds {self._images.dtype} {self._images.shape}, not uint8 "
                f"({len(truth)}, 64, 64, 3); delete it and unpack again"
            )
        self.side = 64
        self.origin = _H5
        self.digest = H5_SHA256
        self._held = self._hold(device) if _has_room(device, self._images.nbytes) else None

    def at(self, index: Int64[Tensor, " image"]) -> UInt8[Tensor, "image side side 3"]:
        if self._held is not None:
            return self._held.index_select(0, index.to(self._held.device))
        return torch.from_numpy(self._images[index.numpy()])

    def _hold(self, device: torch.device | str) -> UInt8[Tensor, "image side side 3"]:
        """All of them, block by block: in memory they would be 5.9 GB once more."""
        held = torch.empty(self._images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(held), _BLOCK):
            block = np.array(self._images[start : start + _BLOCK])
            held[start : start + _BLOCK].copy_(torch.from_numpy(block))
        return held


def _has_room(device: torch.device | str, nbytes: int) -> bool:
    """Whether so many bytes leave at least as many to what trains there."""
    device = torch.device(device)
    return device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 2 * nbytes


class Shapes3DPairs:
    """Pairs of one scale, shape and orientation, all other factors drawn apart for each image.

    Drawn from all 480,000 images: the paper does not say that it held any back. Rendered layers are
    held on `device` and tinted there, images of the h5 (5.9 GB) where they fit, else picked from
    the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if normalisation not in (None, NORMALISATION):
            raise DataError("the shared encoder was trained on other images than 3D Shapes")
        self._images = open_images(folder, device)
        self._looked_up = _NORMALISED.to(device)
        self._seed = seed

    @property
    def image_size(self) -> tuple[int, int]:
        return self._images.side, self._images.side

    @property
    def normalisation(self) -> Normalisation:
        return NORMALISATION

    @property
    def description(self) -> dict[str, str]:
        return {
            "data": f"3D Shapes ({self._images.origin}), {len(TRUTH)} images, "
            "pairs of one scale, shape and orientation",
            "data_digest": self._images.digest,
            "pixels": "colours from 0 to 1",
        }

    def indices(self, step: int, size: int) -> Int64[Tensor, "2 size"]:
        """Which images the pairs of a step are, X first; a function of the seed and of `step`."""
        seed = np.random.SeedSequence([self._seed, 1, step]).generate_state(1)
        generator = Generator().manual_seed(int(seed[0]))
        view = torch.randint(VIEWS, (size,), generator=generator)
        # A colouring is three hues: uniform among all of them, so the hues are independent too.
        return torch.randint(COLOURINGS, (2, size), generator=generator) * VIEWS + view

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
        """`rows` of `size` pairs, normalised."""
        index = self.indices(step, size)[:, rows]
        images = self._images.at(index.flatten()).to(self._looked_up.device).movedim(3, 1)
        # Looking up what each of 256 greys becomes is quicker than normalising every pixel.
        pixels = self._looked_up.index_select(0, images.flatten().int()).view(images.shape)
        return PairBatch(*pixels.split(index.shape[1]))


def labelled_shapes3d(folder: Path, *, seed: int, train: int, test: int) -> LabelledImages:
    """Images drawn without repetition, with all six factors, for training and testing a probe.

    The paper states neither the sizes nor the kind of its split; these are ours.
    """
    if train + test > len(TRUTH):
        raise DataError(f"{train} and {test} images asked for; 3D Shapes has {len(TRUTH)}")
    images = open_images(folder)
    generator = Generator().manual_seed(int(np.random.SeedSequence([seed, 6]).generate_state(1)[0]))
    chosen = torch.randperm(len(TRUTH), generator=generator)[: train + test]
    pixels = torch.empty(len(chosen), 3, images.side, images.side)
    for part, index in zip(pixels.split(_BLOCK), chosen.split(_BLOCK), strict=True):
        part.copy_(_unit(images.at(index)))
    factors = TRUTH.factors(chosen).numpy()
    return LabelledImages(
        images=pixels.numpy(),
        factors={name: factors[:, place] for place, name in enumerate(TRUTH.values)},
        shared=SHARED,
        digest=images.digest,
        split=np.repeat(["train", "test"], [train, test]),
    )


def open_images(folder: Path, device: torch.device | str = "cpu") -> Images:
    """Those of the h5 where it was unpacked, else the layers, held on `device`; `DataError` where
    there are none."""
    unpacked, layers = folder / _UNPACKED, folder / _LAYERS
    if unpacked.exists():
        return UnpackedImages(unpacked, device=device)
    if layers.exists() and not (folder / _H5).exists():
        return TintedImages(scene.load_layers(layers), sha256(layers), device)
    raise DataError(
        f"{folder} has no 3D Shapes to read; `mimodel data shapes3d --to {folder}` unpacks "
        f"{_H5} where it lies there, and otherwise renders the scene anew"
    )


def make_shapes3d(folder: Path, report: Callable[[str], None]) -> None:
    """3D Shapes into `folder`: its own h5 verified and unpacked, or else layers, rendered once."""
    folder.mkdir(parents=True, exist_ok=True)
    h5, unpacked, layers = (folder / name for name in (_H5, _UNPACKED, _LAYERS))
    if unpacked.exists():
        UnpackedImages(unpacked)
        verified = check_sum(unpacked)
        report(
            f"{unpacked} has the images of {_H5} already, "
            + ("verified" if verified else "of which nothing says what they were")
        )
    elif h5.exists():
        report(f"verifying {h5}")
        unpack_h5(h5, unpacked, report)
        report(f"{unpacked}: {len(TRUTH)} images, SHA-256 of {_H5} verified")
    elif layers.exists():
        scene.load_layers(layers)
        report(f"{layers} has the rendered views already, verified")
    else:
        report(f"no {_H5} in {folder}: rendering its scene anew")
        scene.save_layers(scene.render_layers(report), layers)
        report(f"{layers}: {VIEWS} views to tint, {len(TRUTH)} images")


def unpack_h5(
    h5: Path,
    to: Path,
    report: Callable[[str], None],
    *,
    truth: Shapes3D = TRUTH,
    digest: str = H5_SHA256,
) -> None:
    """The images of `3dshapes.h5`, verified, as plain bytes (5.9 GB) that are quick to pick from.

    A compressed h5 is read by whole chunks, which as h5py lays them out run across thousands of
    images: a batch of single images would decompress a good part of it. `DataError` if it is
    not what it should be. `report` is told of each tenth.
    """
    import h5py

    if sha256(h5) != digest:
        raise DataError(f"{h5} is not the published {_H5}: its SHA-256 is another")
    partial = to.with_name(f"{to.name}.partial")
    try:
        with h5py.File(h5) as file:
            images = _checked(file, truth)
            out = np.lib.format.open_memmap(partial, "w+", images.dtype, images.shape)
            rows = images.chunks[0] if images.chunks else 1
            block = rows * math.ceil(_BLOCK / rows)  # whole chunks, each decompressed once
            tenth = 1
            for first in range(0, len(images), block):
                done = min(first + block, len(images))
                out[first:done] = images[first:done]
                if 10 * done >= tenth * len(images):
                    report(f"unpacked {done} of {len(images)} images")
                    tenth = 10 * done // len(images) + 1
            out.flush()
        partial.replace(to)
        note_sum(to)
    finally:
        partial.unlink(missing_ok=True)


def _checked(file: Any, truth: Shapes3D) -> Any:
    """The h5's images, if it holds what it should and its labels are in the order of `truth`."""
    if not {"images", "labels"} <= set(file):
        raise DataError(f"{file.filename} holds {sorted(file)}, not images and labels")
    images, labels = file["images"], file["labels"]
    if images.shape != (len(truth), 64, 64, 3) or images.dtype != np.uint8:
        raise DataError(
            f"{file.filename} holds images {images.dtype} {images.shape}, "
            f"not uint8 ({len(truth)}, 64, 64, 3)"
        )
    expected = truth.labels()
    if labels.shape != expected.shape or not np.allclose(labels[:], expected, rtol=0, atol=1e-6):
        raise DataError(f"{file.filename} has its images in another order of factors")
    return images


def _unit(images: UInt8[Tensor, "image side side 3"]) -> Float[Tensor, "image 3 side side"]:
    """Colours from 0 to 1."""
    return images.movedim(3, 1).float() / 255
