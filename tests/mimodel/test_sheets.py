"""Pictures: what is drawn is what was measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mimodel import sheets
from mimodel.data.pairs import LabelledImages
from mimodel.readouts import MLP, Reading


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures are kept open, so that a test can look at what is on them."""
    kept: list[Figure] = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    for figure in kept:
        plt.close(figure)


def _reading(representation: str, factor: str, accuracy: float, ideal: float) -> Reading:
    curve = ((10, accuracy / 2), (20, accuracy))
    return Reading(representation, factor, MLP, accuracy, accuracy, accuracy, 0.1, ideal, curve)


def test_learning_curves_have_a_panel_a_factor_and_a_line_a_representation(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    readings = [
        _reading("shared", "digit", 0.9, 1.0),
        _reading("exclusive", "digit", 0.2, 0.1),
        _reading("shared", "colour", 0.12, 0.1),
        Reading("raw pixels", "digit", "kNN (1)", 0.8, 0.8, 0.8, 0.1, None),
    ]
    sheets.draw_learning_curves(readings, tmp_path / "curves.png")
    digit, colour = drawn[0].axes
    assert (digit.get_title(), colour.get_title()) == ("digit", "colour")
    lines = {line.get_label(): line for line in digit.get_lines()}
    assert list(lines["shared"].get_ydata()) == [0.45, 0.9]
    assert list(lines["exclusive"].get_xdata()) == [10, 20]
    assert "raw pixels" not in lines
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 300


def test_the_sweep_draws_accuracy_from_e_over_lambda_and_the_ideal(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    runs = [
        [_reading("exclusive", "digit", accuracy, 0.1), _reading("shared", "digit", 0.99, 1.0)]
        for accuracy in (0.4, 0.3, 0.2)
    ]
    sheets.draw_sweep((0.0, 0.01, 0.05), [[run] for run in runs], tmp_path / "sweep.png")
    (axis,) = drawn[0].axes
    measured, ideal = axis.get_lines()
    assert list(measured.get_xdata()) == [0.0, 0.01, 0.05]
    assert list(measured.get_ydata()) == [0.4, 0.3, 0.2]
    assert set(ideal.get_ydata()) == {0.1}
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def _levels(samples: int) -> LabelledImages:
    """Images that a level of grey tells apart; every third one is for training."""
    levels = np.arange(samples, dtype=np.float32) / samples
    return LabelledImages(
        images=np.broadcast_to(levels[:, None, None, None], (samples, 1, 4, 4)),
        factors={"level": np.arange(samples)},
        shared=("level",),
        split=np.where(np.arange(samples) % 3, "test", "train"),
    )


def _shown(row: Sequence[Axes], samples: int) -> list[int]:
    """Which images a row of panels shows."""
    arrays = [np.asarray(image.get_array()) for axis in row for image in axis.get_images()]
    return [round(float(array[0, 0]) * samples) for array in arrays]


def test_a_retrieval_sheet_shows_the_nearest_test_images_nearest_first(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    data, samples = _levels(24), 24
    places = {
        "shared": np.arange(24.0) ** 1.01,  # no two others are equally far
        "exclusive": np.random.default_rng(0).permutation(24) ** 1.01,
    }
    features = {name: each[:, None].astype(np.float32) for name, each in places.items()}
    sheets.draw_retrieval_sheet(features, data, tmp_path / "sheet.png", rows=2)
    panels = np.array(drawn[0].axes).reshape(4, 10)
    queries = []
    for row, name in zip(panels, ("shared", "shared", "exclusive", "exclusive"), strict=True):
        query, *found = _shown(list(row), samples)
        others = [one for one in range(24) if one % 3 and one != query]
        place = places[name]
        assert found == sorted(others, key=lambda one: abs(place[one] - place[query]))[:9]
        assert row[1].get_title("left") == f"nearest by the {name} representation"
        assert query % 3
        queries.append(query)
    assert queries[:2] == queries[2:]
    assert queries[0] != queries[1]


def test_which_of_those_equally_near_are_shown_does_not_follow_their_order(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    """Images of a data set lie class by class, and a code of few values has many of them."""
    features = {"exclusive": np.zeros((90, 1), np.float32)}
    sheets.draw_retrieval_sheet(features, _levels(90), tmp_path / "sheet.png", rows=2)
    for row in np.array(drawn[0].axes).reshape(2, 10):
        query, *found = _shown(list(row), 90)
        assert query not in found
        assert len(set(found)) == 9
        assert min(found) < 30
        assert max(found) > 60


def test_one_query_and_one_representation_are_a_sheet_too(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    features = {"latent": np.arange(6, dtype=np.float32)[:, None] ** 2}
    sheets.draw_retrieval_sheet(features, _levels(6), tmp_path / "sheet.png", rows=1)
    query, *found = _shown(drawn[0].axes, 6)
    assert sorted([query, *found]) == [
        1,
        2,
        4,
        5,
    ]  # as many as there are; the other panels are blank
    assert len(drawn[0].axes) == 10


@pytest.mark.slow
def test_tsne_keeps_clusters_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    pytest.importorskip("openTSNE", reason="the extra tsne is not installed")
    rng = np.random.default_rng(0)
    writer = np.arange(150) % 3
    features = (np.eye(3)[writer] * 20 + rng.normal(size=(150, 3))).astype(np.float32)
    data = LabelledImages(
        images=rng.random((150, 1, 8, 16)).astype(np.float32),
        factors={"writer": writer},
        shared=("writer",),
        split=np.repeat(["train", "test"], 75),
    )
    sheets.draw_tsne(features, data, tmp_path / "tsne.png")
    points = drawn[0].axes[0].collections[0]
    places = np.asarray(points.get_offsets())
    shown = np.asarray(points.get_array())
    assert len(places) == 75
    centres = np.stack([places[shown == who].mean(0) for who in range(3)])
    nearest = ((places[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == shown).all()
    thumbnails = drawn[0].axes[1].artists
    assert len(thumbnails) == 75
