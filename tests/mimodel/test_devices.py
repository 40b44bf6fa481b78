"""Benchmarks are made where they are learnt from: what is drawn is the same, and nothing is left
behind on another device.

The device "meta" works out shapes and refuses operations that mix devices, as a GPU does.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mimodel.data.mnist import NORMALISATION, ColoredMnistPairs
from mimodel.data.pairs import PairSource
from mimodel.data.shapes3d import Shapes3DPairs
from mimodel.data.shapes3d_render import save_layers
from mimodel.data.words import WordPairs
from mimodel.normalisation import Normalisation
from tests.mimodel.made_digits import write_digits
from tests.mimodel.test_shapes3d import made_layers
from tests.mimodel.test_words import made_words


@pytest.fixture(params=["digits", "the same digit", "shapes", "words"])
def sources(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, PairSource]:
    def source(device: str) -> PairSource:
        if request.param == "words":
            return WordPairs(made_words(), seed=0, device=device)
        if request.param == "shapes":
            save_layers(made_layers(), tmp_path / "layers.npz")
            return Shapes3DPairs(tmp_path, seed=0, device=device)
        same = request.param == "the same digit"
        folder = write_digits(tmp_path, monkeypatch)
        return ColoredMnistPairs(folder, same_image=same, seed=0, device=device)

    return {device: source(device) for device in ("cpu", "meta")}


def test_batches_are_made_on_the_device_that_holds_the_data(sources: dict[str, PairSource]) -> None:
    here, there = (source.batch(3, 8, slice(2, 6)) for source in sources.values())
    for ours, theirs in ((here.x, there.x), (here.y, there.y)):
        assert theirs.device.type == "meta"
        assert (theirs.shape, theirs.dtype) == (ours.shape, ours.dtype)


def test_a_tensor_is_normalised_as_an_array_is() -> None:
    values = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 4)).astype(np.float32)
    uneven = Normalisation(bands=("a", "b", "c"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.7, 0.9))
    for normalisation in (NORMALISATION, uneven):
        ours = normalisation.of_tensor(torch.from_numpy(values)).numpy()
        np.testing.assert_array_equal(ours, normalisation(values))
