"""Colored-MNIST (Sanchez et al. 2019, section 5): pairs of one digit class in two domains.

X is a white digit on a coloured background, Y a coloured digit on black. What they share is the
digit; the colour is each one's own. The supplement's colour list has 13 entries of which two are
repeated; these are the 12 evenly spaced hues that it must mean.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from mimodel.data.pairs import Domain, LabelledImages, PairBatch
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

HUES: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "orange": (255, 128, 0),
    "yellow": (255, 255, 0),
    "chartreuse": (128, 255, 0),
    "green": (0, 255, 0),
    "spring": (0, 255, 128),
    "cyan": (0, 255, 255),
    "azure": (0, 128, 255),
    "blue": (0, 0, 255),
    "violet": (128, 0, 255),
    "magenta": (255, 0, 255),
    "rose": (255, 0, 128),
}
COLOURS = torch.tensor(list(HUES.values()), dtype=torch.float32) / 255
"""(12, 3), red green blue from 0 to 1."""

FILES: dict[str, str] = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MNIST's four files, with the MD5 of each when it is not compressed."""

NORMALISATION = Normalisation(bands=("red", "green", "blue"), mean=(0.5,) * 3, std=(0.5,) * 3)
"""From 0..1 to -1..1; ours, the paper does not say."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of one split of MNIST, sorted by class so that a class is a run of rows."""

    grey: UInt8[Tensor, "image 28 28"]
    label: Int64[Tensor, " image"]
    first: Int64[Tensor, " 10"]
    """Row at which each class begins."""
    count: Int64[Tensor, " 10"]


def read_digits(folder: Path, split: Literal["train", "t10k"]) -> Digits:
    """One split from MNIST's idx files, compressed (.gz) or not, verified by their MD5."""
    grey, unsorted = read_in_file_order(folder, split)
    label, order = unsorted.sort(stable=True)
    count = torch.bincount(label, minlength=10)
    return Digits(grey[order], label, count.cumsum(0) - count, count)


def read_in_file_order(
    folder: Path, split: Literal["train", "t10k"]
) -> tuple[UInt8[Tensor, "image 28 28"], Int64[Tensor, " image"]]:
    """Images and labels of one split, row i being MNIST's image i."""
    images = _read(folder, f"{split}-images-idx3-ubyte", header=16)
    labels = _read(folder, f"{split}-labels-idx1-ubyte", header=8)
    grey = torch.from_numpy(images.reshape(-1, 28, 28).copy())
    return grey, torch.from_numpy(labels.astype(np.int64))


def coloured(
    grey: UInt8[Tensor, "batch 28 28"], colour: Int64[Tensor, " batch"], domain: Domain
) -> Float[Tensor, "batch 3 28 28"]:
    """White digits on coloured ground ("x") or coloured digits on black ("y"), from 0 to 1."""
    ink = (grey.float() / 255)[:, None]
    paint = COLOURS.to(grey.device)[colour][:, :, None, None]
    return ink + (1 - ink) * paint if domain == "x" else ink * paint


class ColoredMnistPairs:
    """Pairs of one class, X and Y each in a colour of its own; different images of the class, or
    with `same_image` the same one. Labels are read to pair, and for nothing else.

    The digits are held on `device`, and coloured there; what is drawn does not depend on it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        same_image: bool,
        seed: int,
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if normalisation not in (None, NORMALISATION):
            raise DataError("the shared encoder was trained on other images than colored-MNIST")
        self._digits = read_digits(folder, "train")
        self._grey = self._digits.grey.to(device)
        self._same_image = same_image
        self._seed = seed

    @property
    def image_size(self) -> tuple[int, int]:
        return 28, 28

    @property
    def normalisation(self) -> Normalisation:
        return NORMALISATION

    @property
    def description(self) -> dict[str, str]:
        which = "the same image" if self._same_image else "two images of a class"
        return {
            "data": f"colored-MNIST, {len(self._digits.label)} training images, pairs of {which}",
            "data_digest": FILES["train-images-idx3-ubyte"],
            "pixels": "colours from 0 to 1",
            **({"pairs_share": "the digit's image"} if self._same_image else {}),
        }

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
        """`rows` of `size` pairs, a function of the seed and of `step`."""
        seed = np.random.SeedSequence([self._seed, 1, step]).generate_state(1)
        generator = Generator().manual_seed(int(seed[0]))
        digits = self._digits
        x = torch.randint(len(digits.label), (size,), generator=generator)
        y = x if self._same_image else self._other_of_class(x, generator)
        colours = torch.randint(len(COLOURS), (2, size), generator=generator)[:, rows]
        # one transfer of all indices
        x, y, of_x, of_y = torch.stack([x[rows], y[rows], *colours]).to(self._grey.device)
        return PairBatch(
            NORMALISATION.of_tensor(coloured(self._grey[x], of_x, "x")),
            NORMALISATION.of_tensor(coloured(self._grey[y], of_y, "y")),
        )

    def _other_of_class(
        self, x: Int64[Tensor, " batch"], generator: Generator
    ) -> Int64[Tensor, " batch"]:
        """For each image another one of its class, all of them equally likely."""
        label = self._digits.label[x]
        first, count = self._digits.first[label], self._digits.count[label]
        step = (torch.rand(len(x), generator=generator, dtype=torch.float64) * (count - 1)).long()
        return first + (x - first + 1 + step) % count


def labelled_mnist(folder: Path, domain: Domain, *, seed: int) -> LabelledImages:
    """Both splits in one domain, each image in a colour drawn once; factors digit and colour."""
    parts = [read_digits(folder, "train"), read_digits(folder, "t10k")]
    grey, label = (torch.cat([getattr(part, name) for part in parts]) for name in ("grey", "label"))
    generator = Generator().manual_seed(int(np.random.SeedSequence([seed, 6]).generate_state(1)[0]))
    colour = torch.randint(len(COLOURS), (len(label),), generator=generator)
    split = np.repeat(["train", "test"], [len(part.label) for part in parts])
    own = {"x": "background colour", "y": "digit colour"}[domain]
    return LabelledImages(
        images=coloured(grey, colour, domain).numpy(),
        factors={"digit": label.numpy(), own: colour.numpy()},
        shared=("digit",),
        split=split,
        digest=FILES["train-images-idx3-ubyte"],
    )


def missing_files(folder: Path) -> list[str]:
    """Those of MNIST's files that are not in `folder`, or are not what they should be."""
    missing = []
    for name in FILES:
        try:
            _verified(folder, name)
        except DataError:
            missing.append(name)
    return missing


def _read(folder: Path, name: str, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The body of an idx file of bytes; its digest stands for the checks of its header."""
    return np.frombuffer(_verified(folder, name), np.uint8, offset=header)


def _verified(folder: Path, name: str) -> bytes:
    """Content of a file, compressed or not, whose digest is the one that MNIST's has."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {plain} or {packed.name}: {error}; `mimodel data mnist --to {folder}` "
            "fetches MNIST"
        ) from error
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != FILES[name]:
        raise DataError(f"{plain} is not MNIST's file of that name: its MD5 is another")
    return data
