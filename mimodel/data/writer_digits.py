"""Writer digits: a stand-in for IAM of real handwriting that needs no registration.

A word is four or five digits of one writer of MNIST, side by side; QMNIST (Yadav and Bottou 2019)
says who wrote each of MNIST's digits. Shared is the writer, exclusive the number. Not in the paper:
figures measured here are not figures of IAM.
"""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mimodel.data.mnist import read_in_file_order
from mimodel.data.words import PAGE, Words
from mimodel.errors import DataError

LABELS = "qmnist-train-labels-idx2-int.gz"
LABELS_MD5 = "0058f8dd561b90ffdd0f734c6a30e5e4"
BOX = 48
"""Side of a digit on the page in pixels, enlarged from MNIST's 28: five fit into 256. Ours."""
LENGTHS = (4, 5)
MIDDLE = 127.5
"""Grey of MNIST (0 paper, 255 ink) above which a pixel is ink."""


@dataclass(frozen=True)
class _Pool:
    """What share of a writer's digits a split gets, and how many sheets are written with them.

    On a sheet each digit stands once. The numbers make about as many words as the paper has of IAM.
    """

    share: float
    sheets: int


POOLS: Mapping[str, _Pool] = {
    "learn": _Pool(0.6, 8),
    "train": _Pool(0.2, 5),
    "test": _Pool(0.2, 2),
}
FEWEST_DIGITS = 25
"""So that the smallest pool holds a word of five."""


def read_writer_digits(mnist: Path, qmnist: Path, *, seed: int, writers: int = 50) -> Words:
    """Words of the `writers` with most digits among MNIST's training images.

    `mnist` holds MNIST's files, `qmnist` the file `LABELS`. The splits of a writer have no digit
    image in common, so that a classifier meets a hand that it knows in digits that it does not.
    `seed` draws splits and words. Content is the digit that comes first.
    """
    grey, label = read_in_file_order(mnist, "train")
    writer = read_writers(qmnist, label)
    rng = np.random.default_rng([seed, 9])
    parts = [
        _words_of(np.flatnonzero(writer == who), number, rng)
        for number, who in enumerate(_most_productive(writer, writers))
    ]
    digits = np.concatenate([part.digits for part in parts])
    return Words(
        images=pages(grey, torch.from_numpy(digits)),
        writer=np.concatenate([part.writer for part in parts]),
        content=label.numpy()[digits[:, 0]],
        sheet=np.concatenate([part.sheet for part in parts]),
        split=np.concatenate([part.split for part in parts]),
        classes=tuple(map(str, range(10))),
        content_name="first digit",
        description=f"writer digits (a stand-in for IAM), {len(digits)} words of four or five "
        f"MNIST digits by {writers} of QMNIST's writers",
    )


def read_writers(folder: Path, label: Int64[Tensor, " image"]) -> npt.NDArray[np.int64]:
    """The writer's number of each of MNIST's training images, whose labels are `label`.

    Each row of QMNIST's file begins with the digit's class and has the writer in column 2; classes
    other than `label` are a `DataError`, as is a file that is missing or of another kind.
    """
    file = folder / LABELS
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {file}: {error}; it is in github.com/facebookresearch/qmnist"
        ) from error
    if len(data) < 12:
        raise DataError(f"{file} is not QMNIST's: it holds {len(data)} bytes")
    header = np.frombuffer(data[:12], ">i4").tolist()
    if header != [0x0C02, len(label), 8] or len(data) != 12 + 32 * len(label):
        raise DataError(
            f"{file} is not QMNIST's: expected an idx file of {len(label)} rows of 8 integers"
        )
    table = np.frombuffer(data, ">i4", offset=12).reshape(-1, 8)
    wrong = np.flatnonzero(table[:, 0] != label.numpy())
    if len(wrong):
        raise DataError(
            f"{file}: {len(wrong)} rows name another digit than MNIST's labels, the first is row "
            f"{wrong[0]}; expected the labels of MNIST's own training images in their order"
        )
    return table[:, 2].astype(np.int64)


def pages(
    grey: UInt8[Tensor, "image 28 28"], digits: Int64[Tensor, "word 5"]
) -> npt.NDArray[np.uint8]:
    """Words as pages (word, 64, 256), 1 paper and 0 ink; `digits` are rows of `grey`, -1 for none.

    Digits are enlarged (bilinear) to `BOX`, cut at the middle grey, and set without gap from left
    to right, the word in the middle of the page.
    """
    used, place = digits.unique(return_inverse=True)
    # The row of "none" is read too, as the last image, and never pasted.
    large = torch.nn.functional.interpolate(grey[used][:, None].float(), size=BOX, mode="bilinear")
    paper = (large[:, 0] <= MIDDLE).to(torch.uint8)
    page = torch.ones(len(digits), *PAGE, dtype=torch.uint8)
    top = (PAGE[0] - BOX) // 2
    for length in LENGTHS:
        chosen = (digits >= 0).sum(1) == length
        left = (PAGE[1] - length * BOX) // 2
        boxes = paper[place[chosen, :length]]
        line = boxes.permute(0, 2, 1, 3).reshape(len(boxes), BOX, length * BOX)
        page[chosen, top : top + BOX, left : left + length * BOX] = line
    return page.numpy()


@dataclass(frozen=True, eq=False)
class _Written:
    """All words of one writer."""

    digits: npt.NDArray[np.int64]
    """(word, 5): rows of MNIST's file, from left to right, -1 for none."""
    writer: npt.NDArray[np.int64]
    sheet: npt.NDArray[np.int64]
    split: npt.NDArray[np.str_]


def _words_of(own: npt.NDArray[np.int64], writer: int, rng: np.random.Generator) -> _Written:
    """Sheets of words with the digits `own`, each pool of them for one split."""
    shares = np.cumsum([pool.share for pool in POOLS.values()])[:-1]
    parts = np.split(rng.permutation(own), np.rint(shares * len(own)).astype(int))
    rows: list[npt.NDArray[np.int64]] = []
    sheets: list[int] = []
    splits: list[str] = []
    for (split, pool), part in zip(POOLS.items(), parts, strict=True):
        for sheet in range(pool.sheets):
            words = _cut_into_words(rng.permutation(part), rng)
            rows += words
            sheets += [sheet] * len(words)
            splits += [split] * len(words)
    digits = np.full((len(rows), max(LENGTHS)), -1)
    for word, row in zip(digits, rows, strict=True):
        word[: len(row)] = row
    return _Written(digits, np.full(len(rows), writer), np.array(sheets), np.array(splits))


def _cut_into_words(
    digits: npt.NDArray[np.int64], rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Runs of four or five; what is left over at the end is not used."""
    ends = rng.choice(LENGTHS, size=len(digits) // min(LENGTHS)).cumsum()
    return np.split(digits, ends[ends <= len(digits)])[:-1]


def _most_productive(writer: npt.NDArray[np.int64], number: int) -> list[int]:
    """The `number` writers with most digits, ties in the order of their numbers."""
    who, count = np.unique(writer, return_counts=True)
    order = np.argsort(-count, kind="stable")[:number]
    if len(who) < number or count[order[-1]] < FEWEST_DIGITS:
        able = int((count >= FEWEST_DIGITS).sum())
        raise DataError(
            f"{able} writers have {FEWEST_DIGITS} digits or more, and {number} are asked for"
        )
    return [int(one) for one in who[order]]
