"""Font words: a stand-in for IAM that is drawn, with the paper's 100 word classes.

A writer is a handwriting font with a slant, a stroke and a size of its own, from which each word
departs a little. Shared is the writer, exclusive the word. Not in the paper: figures measured here
are not figures of IAM.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mimodel.data.fonts import FONTS, open_font
from mimodel.data.words import Words, on_page, random_split
from mimodel.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

WORDS: tuple[str, ...] = tuple(
    """
    about after again air all and animal back before boat book boy bread bring child city come
    country day door down earth every eye family father find first food friend garden give good
    great green hand head hear help her high home house how in is it keep know land large learn
    letter life light little long look make man many money morning mother mountain name never night
    number of old open other paper people place read river school ship small song stone summer
    that the time to tree under voice walk water white why wind woman word work world
    """.split()  # noqa: SIM905 -- shorter to read
)
"""A hundred common English words, short and long; ours."""

_FINER = 2
"""Words are drawn this much larger, and then reduced: strokes can be wider by half a pixel."""


@dataclass(frozen=True)
class Hand:
    """How a writer, or a single word of one, departs from the font."""

    slant: float
    """Columns to the right for each row upwards; negative leans back."""
    stroke: int
    """Half pixels added on each side of a stroke."""
    size: float
    """Factor on the size at which the font was opened."""


def font_words(
    folder: Path, *, seed: int, fonts: Sequence[str] = FONTS, words: Sequence[str] = WORDS
) -> Words:
    """Each word once by each font of `folder`; `mimodel data font-words` fetches these.

    What a writer writes in "train" and "test" is thus never what "learn" saw that writer write.
    `seed` draws the hands, how single words depart from them, and the split. A font that is
    missing or damaged is a `DataError`.
    """
    rng = np.random.default_rng([seed, 10])
    pages: list[npt.NDArray[np.uint8]] = []
    for name in fonts:
        font = _opened(folder, name, height=rng.uniform(28, 44) * _FINER)
        own = Hand(slant=rng.uniform(-0.1, 0.35), stroke=int(rng.integers(0, 3)), size=1)
        pages += [on_page(written(word, font, _once(own, rng))) for word in words]
    return Words(
        images=np.stack(pages),
        writer=np.repeat(np.arange(len(fonts)), len(words)),
        content=np.tile(np.arange(len(words)), len(fonts)),
        sheet=np.zeros(len(pages), np.int64),
        split=random_split(len(pages), rng),
        classes=tuple(words),
        content_name="word",
        description=f"font words (a stand-in for IAM), {len(words)} words by each of {len(fonts)} "
        "handwriting fonts",
    )


def written(text: str, font: "FreeTypeFont", hand: Hand) -> npt.NDArray[np.bool_]:
    """Ink of `text` (row, col), cut to its bounds; `font` is opened at twice its size on paper.

    Text in which the font draws nothing is a `DataError`.
    """
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    lean = abs(hand.slant) * (bottom - top) / 2
    margin = math.ceil(lean) + 2 + hand.stroke, 2 + hand.stroke
    size = math.ceil(right - left) + 2 * margin[0], math.ceil(bottom - top) + 2 * margin[1]
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).text((margin[0] - left, margin[1] - top), text, fill=255, font=font)
    drawn = Image.fromarray(_thickened(np.asarray(drawn), hand.stroke))
    shear = (1, hand.slant, -hand.slant * size[1] / 2, 0, 1, 0)
    leant = drawn.transform(size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    scale = hand.size / _FINER
    final = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    ink = np.asarray(leant.resize(final, Image.Resampling.BOX)) >= 128
    rows, cols = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        raise DataError(f"the font {font.getname()} draws nothing for {text!r}")
    return ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _thickened(drawn: npt.NDArray[np.uint8], times: int) -> npt.NDArray[np.uint8]:
    """Every stroke a pixel wider on each side, `times` over; the margin is wide enough to roll.

    Pillow's own stroke takes three times as long as all the rest of a word.
    """
    for _ in range(times):
        sides = [np.roll(drawn, by, axis) for by in (-1, 1) for axis in (0, 1)]
        drawn = np.maximum.reduce([drawn, *sides])
    return drawn


def _opened(folder: Path, name: str, height: float) -> "FreeTypeFont":
    """A font at the size where letters of all kinds are `height` pixels from top to bottom.

    Fonts differ much in how large their letters are for the same nominal size.
    """
    _, top, _, bottom = open_font(folder, name, 100).getbbox("hxg")
    if bottom <= top:
        raise DataError(f"the font {name} of {folder} has no Latin letters")
    return open_font(folder, name, 100 * height / (bottom - top))


def _once(hand: Hand, rng: np.random.Generator) -> Hand:
    """The hand in a single word: nobody writes twice alike."""
    return Hand(
        slant=hand.slant + rng.uniform(-0.05, 0.05),
        stroke=hand.stroke,
        size=hand.size * rng.uniform(0.92, 1.08),
    )
