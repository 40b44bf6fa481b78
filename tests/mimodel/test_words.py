"""Words and their pairs, on pages whose first pixels say which image they are."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mimodel.data.words import (
    NORMALISATION,
    PAGE,
    WordPairs,
    Words,
    labelled_words,
    on_page,
    random_split,
)
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

BITS = 8
ALONE = 40
"""The only image of its writer to learn from."""


def made_words() -> Words:
    """60 images: 41 to learn from, by three writers on two sheets each and one that wrote once."""
    number = np.arange(60)
    images = np.ones((60, *PAGE), np.uint8)
    images[:, 0, :BITS] = number[:, None] >> np.arange(BITS) & 1
    split = np.where(number <= ALONE, "learn", np.where(number % 2, "train", "test"))
    return Words(
        images=images,
        writer=np.where(number == ALONE, 3, number % 3),
        content=number % 5,
        sheet=number // 3 % 2,
        split=split,
        classes=tuple("abcde"),
        content_name="letter",
        description="made words",
    )


def numbers(pages: torch.Tensor) -> npt.NDArray[np.int64]:
    """Which image each normalised page is."""
    bits = (pages[:, 0, 0, :BITS].numpy() > 0).astype(np.int64)
    return np.asarray(bits @ (1 << np.arange(BITS)))


def test_pairs_are_two_images_of_one_sheet_of_a_writer_all_equally_likely() -> None:
    words = made_words()
    pairs = WordPairs(words, seed=0)
    batches = [pairs.batch(step, 64) for step in range(60)]
    x, y = (np.concatenate([numbers(getattr(b, side)) for b in batches]) for side in "xy")
    np.testing.assert_array_equal(words.writer[x], words.writer[y])
    np.testing.assert_array_equal(words.sheet[x], words.sheet[y])
    assert (x != y).all()
    # 40 images with a partner, 3,840 draws: every ordered pair that may be is, equally often.
    assert set(x) == set(y) == set(range(ALONE))
    counts = np.bincount(x)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 39 + 4 * (2 * 39) ** 0.5
    for sheet in {(w, s) for w, s in zip(words.writer, words.sheet, strict=True) if w < 3}:
        members = [n for n in range(ALONE) if (words.writer[n], words.sheet[n]) == sheet]
        seen = {(a, b) for a, b in zip(x, y, strict=True) if a in members}
        assert seen == {(a, b) for a in members for b in members if a != b}


def test_pixels_go_from_minus_one_in_ink_to_one_on_paper() -> None:
    pairs = WordPairs(made_words(), seed=0)
    batch = pairs.batch(0, 16)
    assert batch.x.shape == batch.y.shape == (16, 1, *PAGE)
    assert set(batch.x.unique().tolist()) == {-1, 1}
    assert pairs.image_size == PAGE
    assert pairs.normalisation == NORMALISATION
    assert pairs.description["pixels"] == "ink from 0 (ink) to 1 (paper)"
    assert "40 images" in pairs.description["data"]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, again, other = (WordPairs(made_words(), seed=seed) for seed in (0, 0, 1))
    first.batch(4, 8)
    assert torch.equal(first.batch(5, 8).x, again.batch(5, 8).x)
    assert torch.equal(first.batch(5, 8).y, again.batch(5, 8).y)
    assert torch.equal(first.batch(5, 8, slice(2, 5)).x, again.batch(5, 8).x[2:5])
    assert torch.equal(first.batch(5, 8, slice(2, 5)).y, again.batch(5, 8).y[2:5])
    assert not torch.equal(first.batch(5, 32).x, first.batch(6, 32).x)
    assert not torch.equal(first.batch(5, 32).x, other.batch(5, 32).x)


def test_labelled_words_are_those_that_no_encoder_has_seen() -> None:
    data = labelled_words(made_words())
    assert data.images.shape == (19, 1, *PAGE)
    assert data.images.dtype == np.float32
    which = numbers(torch.from_numpy(data.images))
    assert set(which) == set(range(ALONE + 1, 60))
    np.testing.assert_array_equal(data.factors["writer"], which % 3)
    np.testing.assert_array_equal(data.factors["letter"], which % 5)
    np.testing.assert_array_equal(data.split == "train", which % 2 == 1)
    assert data.shared == ("writer",)
    assert data.classifier_width == 64


def test_a_digest_is_of_pixels_labels_and_split() -> None:
    words = made_words()
    assert words.digest == made_words().digest
    images, writer, split = words.images.copy(), words.writer.copy(), words.split.copy()
    images[3, 30, 30], writer[3], split[3] = 0, 9, "test"
    changed = [
        replace(words, images=images),
        replace(words, writer=writer),
        replace(words, split=split),
    ]
    assert len({words.digest, *(other.digest for other in changed)}) == 4


def test_a_word_that_fits_is_padded_with_ones_and_not_changed() -> None:
    ink = np.random.default_rng(0).random((31, 100)) < 0.5
    page = on_page(ink)
    assert page.shape == PAGE
    assert page.dtype == np.uint8
    expected = np.pad(1 - ink.astype(int), ((16, 17), (78, 78)), constant_values=1)
    np.testing.assert_array_equal(page, expected)
    full = np.random.default_rng(1).random(PAGE) < 0.5
    np.testing.assert_array_equal(on_page(full), ~full)


def test_a_larger_word_is_reduced_to_where_half_of_the_area_is_ink() -> None:
    ink = np.random.default_rng(0).random((128, 300)) < 0.5
    blocks = ink.reshape(64, 2, 150, 2).sum((1, 3))
    assert set(np.unique(blocks)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(on_page(ink)[:, 53:203], blocks < 2)


@pytest.mark.parametrize(
    ("size", "reduced"),
    [((100, 100), (64, 64)), ((10, 512), (5, 256)), ((1, 900), (1, 256)), ((640, 2), (64, 1))],
)
def test_a_reduced_word_keeps_its_proportions(
    size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    rows, cols = (on_page(np.ones(size, np.bool_)) == 0).nonzero()
    assert (np.ptp(rows) + 1, np.ptp(cols) + 1) == reduced


def test_the_split_has_the_papers_sizes() -> None:
    split = random_split(8750, np.random.default_rng(0))
    assert [(split == part).sum() for part in ("learn", "train", "test")] == [6711, 1427, 612]
    again, other = (random_split(8750, np.random.default_rng(seed)) for seed in (0, 1))
    assert (split == again).all()
    assert (split != other).any()
    assert len(random_split(7, np.random.default_rng(0))) == 7


def test_what_cannot_be_paired_is_an_error() -> None:
    words = made_words()
    with pytest.raises(DataError, match="41 images to learn from"):
        WordPairs(replace(words, writer=np.arange(60)), seed=0)
    with pytest.raises(DataError, match="made words: none of its 0 images"):
        WordPairs(replace(words, split=np.full(60, "test")), seed=0)
    other = Normalisation(bands=("grey",), mean=(0.4,), std=(0.5,))
    with pytest.raises(DataError, match="other images"):
        WordPairs(words, seed=0, normalisation=other)
    WordPairs(words, seed=0, normalisation=NORMALISATION)
