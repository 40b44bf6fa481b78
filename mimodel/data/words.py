"""Handwritten words by many writers: what IAM and its stand-ins have in common.

A pair is two words by one hand (Sanchez et al. 2019, section 5): what they share is the writer,
what is written is each one's own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from mimodel.data.pairs import LabelledImages, PairBatch
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

PAGE = (64, 256)
"""Rows and columns of a word image; supplement, section 1.3."""

SPLIT: Mapping[str, int] = {"learn": 6711, "train": 1427, "test": 612}
"""The paper's images that train the encoders, that fit the classifiers, and that score them."""

CLASSIFIER_WIDTH = 64
"""C of the classifiers of IAM; supplement, section 1.3."""

NORMALISATION = Normalisation(bands=("grey",), mean=(0.5,), std=(0.5,))
"""From 0..1 to -1..1; ours, the paper does not say."""


@dataclass(frozen=True, eq=False)
class Words:
    """Binary images of words, each with who wrote it and what it says."""

    images: npt.NDArray[np.uint8]
    """(image, 64, 256); 1 is paper, 0 is ink."""
    writer: npt.NDArray[np.int64]
    """From 0 upwards, as `content` is."""
    content: npt.NDArray[np.int64]
    """Index into `classes`."""
    sheet: npt.NDArray[np.int64]
    """Pairs are made of one sheet of a writer. Where images are made of parts that occur in several
    of them, those of a sheet have no part in common; elsewhere a writer has one sheet, 0."""
    split: npt.NDArray[np.str_]
    """"learn", "train" or "test"."""
    classes: tuple[str, ...]
    content_name: str
    """What `content` is of an image, such as "word"."""
    description: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, labels and split."""
        total = hashlib.sha256()
        for part in (self.images, self.writer, self.content, self.sheet, self.split.astype("U5")):
            total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()


class WordPairs:
    """Pairs of two different images by one writer, of the split "learn".

    The first is any image, all equally likely; the second any other image of its writer's sheet.
    Images that have no partner are left out; `DataError` where none has one. They are held on
    `device`; what is drawn does not depend on it.
    """

    def __init__(
        self,
        words: Words,
        *,
        seed: int,
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if normalisation not in (None, NORMALISATION):
            raise DataError("the shared encoder was trained on other images than binary words")
        self._words = words
        self._seed = seed
        chosen, self._first, self._count = _runs_of_a_sheet(words)
        self._pages: UInt8[Tensor, "image 64 256"] = torch.from_numpy(words.images[chosen]).to(
            device
        )

    @property
    def image_size(self) -> tuple[int, int]:
        return PAGE

    @property
    def normalisation(self) -> Normalisation:
        return NORMALISATION

    @property
    def description(self) -> dict[str, str]:
        return {
            "data": f"{self._words.description}; {len(self._pages)} images to learn from, "
            "pairs of two images by one writer",
            "data_digest": self._words.digest,
            "pixels": "ink from 0 (ink) to 1 (paper)",
        }

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
        """`rows` of `size` pairs, a function of the seed and of `step`."""
        seed = np.random.SeedSequence([self._seed, 1, step]).generate_state(1)
        generator = Generator().manual_seed(int(seed[0]))
        x = torch.randint(len(self._pages), (size,), generator=generator)
        both = torch.stack([x, self._other_of_sheet(x, generator)])[:, rows]
        x, y = both.to(self._pages.device)
        return PairBatch(_normalised(self._pages[x]), _normalised(self._pages[y]))

    def _other_of_sheet(
        self, x: Int64[Tensor, " batch"], generator: Generator
    ) -> Int64[Tensor, " batch"]:
        """For each image another one of its sheet, all of them equally likely."""
        first, count = self._first[x], self._count[x]
        step = (torch.rand(len(x), generator=generator, dtype=torch.float64) * (count - 1)).long()
        return first + (x - first + 1 + step) % count


def labelled_words(words: Words) -> LabelledImages:
    """The images that classifiers are fitted to and scored on; factors writer and content."""
    chosen = words.split != "learn"
    return LabelledImages(
        images=words.images[chosen, None].astype(np.float32),
        factors={"writer": words.writer[chosen], words.content_name: words.content[chosen]},
        shared=("writer",),
        split=words.split[chosen],
        classifier_width=CLASSIFIER_WIDTH,
        digest=words.digest,
        group=words.writer[chosen],
    )


def on_page(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A word (row, col) of any size as a page: 64 by 256, 1 paper and 0 ink, the word centred.

    A word larger than the page is first reduced to fit, its proportions kept; a pixel is then ink
    where at least half of its area was. The paper pads with ones and does not say where, nor what
    it does with larger words: both are ours.
    """
    fitted = _reduced(ink)
    height, width = fitted.shape
    top, left = (PAGE[0] - height) // 2, (PAGE[1] - width) // 2
    page = np.ones(PAGE, np.uint8)
    page[top : top + height, left : left + width] = ~fitted
    return page


def random_split(count: int, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    """The split of each of `count` images, drawn in the proportions of the paper."""
    shares = np.array([0, *SPLIT.values()])
    bounds = np.rint(shares.cumsum() / shares.sum() * count).astype(int)
    return rng.permutation(np.repeat(list(SPLIT), np.diff(bounds)))


def _runs_of_a_sheet(
    words: Words,
) -> tuple[npt.NDArray[np.int64], Int64[Tensor, " image"], Int64[Tensor, " image"]]:
    """Learnable images ordered by sheet; for each, where the run of its sheet begins, and its
    length."""
    learn = np.flatnonzero(words.split == "learn")
    sheet = np.stack([words.writer[learn], words.sheet[learn]])
    _, run, count = np.unique(sheet, axis=1, return_inverse=True, return_counts=True)
    run = run.reshape(-1)  # its shape differs between versions of numpy
    chosen = np.flatnonzero(count[run] > 1)
    if not len(chosen):
        raise DataError(
            f"{words.description}: none of its {len(learn)} images to learn from has another by "
            "the same writer; pairs need two"
        )
    ordered = chosen[np.argsort(run[chosen], kind="stable")]
    _, first, position, length = np.unique(
        run[ordered], return_index=True, return_inverse=True, return_counts=True
    )
    return learn[ordered], torch.from_numpy(first[position]), torch.from_numpy(length[position])


def _normalised(pages: UInt8[Tensor, "batch 64 256"]) -> Float[Tensor, "batch 1 64 256"]:
    return NORMALISATION.of_tensor(pages[:, None].float())


def _reduced(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    from PIL import Image

    height, width = ink.shape
    scale = min(PAGE[0] / height, PAGE[1] / width)
    if scale >= 1:
        return ink
    size = max(1, round(width * scale)), max(1, round(height * scale))
    covered = Image.fromarray(ink.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return np.asarray(covered) >= 128
