"""Colored-MNIST: what a pair shares and what it does not, on made digits and on the real ones."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from mimodel.data import mnist
from mimodel.data.mnist import COLOURS, ColoredMnistPairs, coloured, labelled_mnist, read_digits
from mimodel.data.pairs import Domain
from mimodel.errors import DataError
from tests.mimodel.made_digits import write_digits


def test_twelve_hues_are_evenly_spaced_and_none_is_repeated() -> None:
    import colorsys

    hues = sorted(colorsys.rgb_to_hsv(*colour)[0] * 12 for colour in COLOURS.tolist())
    np.testing.assert_allclose(hues, np.arange(12), atol=0.02)


def test_only_ground_or_only_ink_has_the_colour() -> None:
    grey = torch.zeros(1, 28, 28, dtype=torch.uint8)
    grey[0, 5, 5] = 255
    red = torch.tensor([0])
    ground, ink = coloured(grey, red, "x")[0], coloured(grey, red, "y")[0]
    assert ground[:, 5, 5].tolist() == [1, 1, 1]
    assert ground[:, 0, 0].tolist() == [1, 0, 0]
    assert ink[:, 5, 5].tolist() == [1, 0, 0]
    assert ink[:, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("same_image", [False, True])
def test_pairs_share_the_class_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_image: bool
) -> None:
    pairs = ColoredMnistPairs(write_digits(tmp_path, monkeypatch), same_image=same_image, seed=0)
    seen = []
    for step in range(60):
        batch = pairs.batch(step, 32)
        x, y = batch.x / 2 + 0.5, batch.y / 2 + 0.5
        # In every hue some channel is 0 and some is 1: the ink is X's least, Y's greatest channel.
        ink_x, ink_y = x.min(1).values, y.max(1).values
        classes = [((ink[:, 6, 6] * 255 - 60) / 10).round().long() for ink in (ink_x, ink_y)]
        rows = [(ink[:, 10, 10] * 255).round().long() for ink in (ink_x, ink_y)]
        colours = [
            (picture[:, None] - COLOURS).abs().sum(2).argmin(1)
            for picture in (x[:, :, 0, 0], y[:, :, 6, 6] / ink_y[:, None, 6, 6])
        ]
        assert torch.equal(classes[0], classes[1])
        assert torch.equal(rows[0], rows[1]) == same_image
        if not same_image:
            assert (rows[0] != rows[1]).all()
        seen.append(torch.stack([classes[0], *rows, *colours], 1))
    table = torch.cat(seen)
    if not same_image:  # each of the five other images of a class, about equally often
        for row in range(60):
            partners = table[table[:, 1] == row, 2].unique(return_counts=True)[1]
            assert len(partners) == 5
            # About 32 draws a row: four standard deviations around an equal share.
            share = partners.double() / partners.sum()
            assert (share - 0.2).abs().max() < 4 * (0.16 / partners.sum()) ** 0.5
    # 144 pairs of colours, 1920 draws: independent and uniform by a chi-square of 143 degrees.
    counts = torch.bincount(table[:, 3] * 12 + table[:, 4], minlength=144).double()
    expected = counts.sum() / 144
    assert ((counts - expected) ** 2 / expected).sum() < 210


def test_a_batch_is_a_function_of_seed_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_digits(tmp_path, monkeypatch)
    first, again, other = (
        ColoredMnistPairs(folder, same_image=False, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.batch(5, 8).x, again.batch(5, 8).x)
    part, whole = first.batch(5, 8, slice(2, 5)), first.batch(5, 8)
    assert torch.equal(part.x, whole.x[2:5])
    assert torch.equal(part.y, whole.y[2:5])
    assert not torch.equal(first.batch(5, 8).x, first.batch(6, 8).x)
    assert not torch.equal(first.batch(5, 8).x, other.batch(5, 8).x)


@pytest.mark.parametrize(("domain", "own"), [("x", "background colour"), ("y", "digit colour")])
def test_labelled_images_carry_the_factors_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: Domain, own: str
) -> None:
    data = labelled_mnist(write_digits(tmp_path, monkeypatch), domain, seed=0)
    assert data.images.shape == (80, 3, 28, 28)
    assert (data.split == "train").sum() == 60
    assert data.shared == ("digit",)
    assert set(data.factors) == {"digit", own}
    assert data.classifier_width == 32  # supplement, 1.1
    inside, corner = data.images[:, :, 6, 6], data.images[:, :, 0, 0]
    # In every hue some channel is 0 and some is 1: the ink is X's least, Y's greatest channel.
    ink = inside.min(1) if domain == "x" else inside.max(1)
    painted = corner if domain == "x" else inside / ink[:, None]
    np.testing.assert_allclose(ink * 255, 10 * data.factors["digit"] + 60, atol=0.01)
    colour = COLOURS[torch.from_numpy(data.factors[own])]
    np.testing.assert_allclose(painted, colour, atol=1e-6)
    assert len(np.unique(data.factors[own])) == 12
    assert domain == "x" or not corner.any()


def test_missing_and_other_files_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mimodel data mnist --to"):
        read_digits(tmp_path, "train")
    for name in mnist.FILES:
        packed = bytearray(gzip.compress(b"digits" * 100))
        packed[15] ^= 0xFF
        (tmp_path / f"{name}.gz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot read"):
        read_digits(tmp_path, "train")
    for name in mnist.FILES:
        (tmp_path / name).write_bytes(b"not a digit")
    with pytest.raises(DataError, match="MD5"):
        read_digits(tmp_path, "train")


@pytest.mark.realdata
def test_real_digits_are_read_from_their_files(crossmi_data: Path) -> None:
    digits = read_digits(crossmi_data / "mnist", "t10k")
    assert digits.count.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert digits.label[digits.first].tolist() == list(range(10))
