"""Similarity maps against equation 5 written out patch by patch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from torch import Tensor
from torch.nn.functional import softplus

from mimodel import similarity
from mimodel.artifact import Artifact
from mimodel.errors import InputError
from mimodel.likeness import Comparison, Places, Terms
from mimodel.similarity import (
    PreparedImage,
    SimilarityMap,
    mean_of,
    polygon_mask,
    similarity_map,
    spread_over,
)
from tests.mimodel import textbook
from tests.models import pixel_artifact


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of 9 x 9 patches."""
    return pixel_artifact(tmp_path_factory.mktemp("pixels") / "artifact")


def _image(height: int = 96, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 0.4, (4, height, width)).astype(np.float32)


def _equation_5(artifact: Artifact, x: np.ndarray, y: np.ndarray) -> float:
    """One pair of patches, textbook networks in float32."""
    scaled = artifact.network_input(np.stack([x, y]), None)
    c, s = artifact.networks.encoder(scaled)
    g = textbook.score(artifact.networks.global_statistics, c, s.flip(0))
    t = textbook.score(artifact.networks.local_statistics, c, s.flip(0))
    return float(0.5 * -softplus(-g).sum() - softplus(-t).mean((1, 2)).sum())


def _naive(
    artifact: Artifact, image: np.ndarray, corner: tuple[int, int], dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 5 of the patch at `corner` with every patch, one at a time; and its half that has
    the image's features and the query's representation."""
    networks = artifact.networks.to(dtype)
    normalised = torch.from_numpy(artifact.spec.normalisation(image)).to(dtype)
    patches = normalised.unfold(1, 9, 1).unfold(2, 9, 1).movedim(0, 2)
    g, t = networks.global_statistics, networks.local_statistics
    c_q, s_q = networks.encoder(patches[corner][None])
    whole, half = np.empty(patches.shape[:2]), np.empty(patches.shape[:2])
    for row, col in np.ndindex(*whole.shape):
        c, s = networks.encoder(patches[row, col][None])
        of_image, of_query = (
            0.5 * -softplus(-textbook.score(g, features, other))
            - softplus(-textbook.score(t, features, other)).mean((1, 2))
            for features, other in ((c, s_q), (c_q, s))
        )
        whole[row, col], half[row, col] = of_image + of_query, of_image
    artifact.networks.to(torch.float32)
    return whole, half


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str
)
@torch.no_grad()
def test_a_dense_map_is_equation_5_for_every_patch(
    pixels: Artifact, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimodel.similarity._STRIP", 5 * 15)  # strips of five rows
    monkeypatch.setattr("mimodel.likeness._ROWS", 16)
    image = _image(15, 15)
    whole, half = _naive(pixels, image, (3, 5), dtype)
    prepared = PreparedImage(pixels, image, comparison=Comparison(pixels, dtype))
    (found,) = prepared.maps([(7, 9)])
    assert found.scores.shape == (7, 7)
    assert found.row_centres.tolist() == list(range(4, 11))
    assert np.ptp(whole) > 1e3 * tolerance  # there is something to get wrong
    np.testing.assert_allclose(found.scores, whole, rtol=1e-6)  # handed out as float32
    exact = torch.cat(list(prepared.scores([(7, 9)])), 1).view(7, 7)
    np.testing.assert_allclose(exact, whole, atol=tolerance, rtol=0)
    fast = torch.cat(list(prepared.scores([(7, 9)], terms=Terms.IMAGE)), 1).view(7, 7)
    np.testing.assert_allclose(fast, 2 * half, atol=2 * tolerance, rtol=0)


def test_bfloat16_ranks_pixels_as_float32_does(pixels: Artifact) -> None:
    image = _image(24, 28)
    exact, rounded = (
        PreparedImage(pixels, image, comparison=Comparison(pixels, dtype))
        .mean_map([(12, 20)])
        .scores.ravel()
        for dtype in (torch.float32, torch.bfloat16)
    )
    ranks = np.stack([exact, rounded]).argsort(1).argsort(1)
    assert np.corrcoef(ranks)[0, 1] > 0.999


def test_a_map_is_equation_5_for_each_pair_of_patches(artifact: Artifact) -> None:
    image = _image()
    found = similarity_map(artifact, image, (40, 44), stride=16)
    assert found.row_centres.tolist() == [32, 48, 64]
    assert found.col_centres.tolist() == [32, 48]
    exact = PreparedImage(
        artifact, image, stride=16, comparison=Comparison(artifact, torch.float32)
    ).maps([(40, 44)])[0]
    reference = image[:, 8:72, 12:76]
    with torch.no_grad():
        for i, row in enumerate(found.row_centres - 32):
            for j, col in enumerate(found.col_centres - 32):
                other = image[:, row : row + 64, col : col + 64]
                expected = _equation_5(artifact, reference, other)
                assert found.scores[i, j] == pytest.approx(expected, abs=0.01)
                assert exact.scores[i, j] == pytest.approx(expected, abs=1e-5)


def test_a_stride_takes_every_nth_pixel_of_the_dense_map(pixels: Artifact) -> None:
    image = _image(22, 27)
    dense, coarse = (
        PreparedImage(
            pixels, image, stride=stride, comparison=Comparison(pixels, torch.float32)
        ).maps([(9, 4)])[0]
        for stride in (1, 4)
    )
    assert coarse.row_centres.tolist() == [4, 8, 12, 16, 17]
    at = np.ix_(coarse.row_centres - 4, coarse.col_centres - 4)
    np.testing.assert_allclose(coarse.scores, dense.scores[at], atol=2e-6)


def test_many_queries_are_each_alone_kept_or_not(pixels: Artifact) -> None:
    image = _image(14, 14)
    queries = [(5, 5), (12, 3), (8, 11)]
    prepared = PreparedImage(pixels, image, comparison=Comparison(pixels, torch.float32))
    bare = (4 * 4 + 1) * 14 * 14  # pixels, and where there are any
    assert prepared.nbytes == bare
    together = prepared.maps(queries)
    assert prepared.nbytes > 36 * 576 * 4
    forgetful = PreparedImage(
        pixels, image, comparison=Comparison(pixels, torch.float32), keep=lambda _: False
    )
    for query, one in zip(queries, together, strict=True):
        assert one.queries == (query,)
        np.testing.assert_allclose(one.scores, prepared.maps([query])[0].scores, atol=1e-6)
        np.testing.assert_allclose(one.scores, forgetful.maps([query])[0].scores, atol=1e-6)
    assert forgetful.nbytes == bare
    mean = prepared.mean_map(queries)
    assert mean.queries == tuple(queries)
    np.testing.assert_allclose(mean.scores, np.mean([m.scores for m in together], 0), atol=1e-6)
    np.testing.assert_array_equal(mean.scores, mean_of(together).scores)


@pytest.mark.parametrize(("stride", "largest"), [(1, 1 * 3 * 10), (3, 7 * 10)])
def test_in_small_steps_the_maps_are_the_same(
    pixels: Artifact, stride: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 scores at most; strips of 60 pixels hold 30 places, batches 10. What is not kept is
    encoded once for all queries."""
    image, queries = _image(21, 18), [(row, col) for row in range(3, 18, 5) for col in range(18)]
    comparison = Comparison(pixels, torch.float32)

    def made() -> PreparedImage:
        return PreparedImage(
            pixels, image, stride=stride, comparison=comparison, keep=lambda _: False
        )

    expected = made().maps(queries)
    for name, value in (("_STRIP", 60), ("_PATCHES", 10), ("_STEP", 70)):
        monkeypatch.setattr(similarity, name, value)
    encoded: list[int] = []
    places = Comparison.places

    def counted(self: Comparison, images: Tensor) -> Places:
        encoded.append(len(images))
        return places(self, images)

    monkeypatch.setattr(Comparison, "places", counted)
    steps = list(made().scores(queries))
    assert max(step.numel() for step in steps) == largest
    pieces = sum(len(step) for step in steps) // len(queries)
    assert len(encoded) == pieces + len(steps) // pieces  # and each group of queries
    for one, other in zip(made().maps(queries), expected, strict=True):
        assert one.queries == other.queries
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@pytest.mark.parametrize("kind", ["patches", "pixels"])
def test_likeness_is_symmetric(artifact: Artifact, pixels: Artifact, kind: str) -> None:
    model = artifact if kind == "patches" else pixels
    size = model.spec.patch_size
    image = _image(size, 2 * size)
    places = [(size // 2, size // 2), (size // 2, size + size // 2)]
    there, back = PreparedImage(
        model, image, stride=size, comparison=Comparison(model, torch.float32)
    ).maps(places)
    assert there.scores[0, 1] == pytest.approx(float(back.scores[0, 0]), abs=1e-6)


def test_a_query_at_the_border_takes_the_nearest_whole_patch(
    artifact: Artifact, pixels: Artifact
) -> None:
    for model, size in ((artifact, 64), (pixels, 9)):
        image = _image(size + 8, size + 12)
        prepared = PreparedImage(model, image, stride=4)
        corner, inside = prepared.maps([(0, size + 11), (size // 2, 12 + size // 2)])
        np.testing.assert_allclose(corner.scores, inside.scores, atol=1e-6)


def test_pixels_without_data_count_as_the_mean_and_have_no_score(pixels: Artifact) -> None:
    image = _image(24, 30)
    image[2, :, :9] = np.nan
    filled = image.copy()
    filled[2, :, :9] = pixels.spec.normalisation.mean[2]
    found = similarity_map(pixels, image, (12, 20))
    np.testing.assert_array_equal(found.scores, similarity_map(pixels, filled, (12, 20)).scores)
    assert (found.scores <= 0).all()
    picture = found.to_image()
    assert np.isnan(picture[:, :9]).all()
    assert np.isfinite(picture[:, 9:]).all()
    with pytest.raises(InputError, match=r"row 12, column 8\) has no data"):
        similarity_map(pixels, image, (12, 8))


def test_beyond_the_last_whole_patch_its_score_counts(pixels: Artifact) -> None:
    found = similarity_map(pixels, _image(16, 17), (8, 8))
    picture = found.to_image()
    assert picture.shape == (16, 17)
    np.testing.assert_array_equal(picture[4:12, 4:13], found.scores)
    np.testing.assert_array_equal(picture, np.pad(found.scores, 4, mode="edge"))


def test_a_map_is_linear_between_centres_and_flat_outside() -> None:
    rows, cols = np.array([32, 48, 60]), np.array([32, 42])
    plane = (2.0 * rows[:, None] + 3.0 * cols[None, :]).astype(np.float32)
    image = SimilarityMap(plane, rows, cols, ((0, 0),), np.ones((92, 74), bool)).to_image()
    assert image.shape == (92, 74)
    r, c = np.clip(np.arange(92), 32, 60), np.clip(np.arange(74), 32, 42)
    np.testing.assert_allclose(image, 2.0 * r[:, None] + 3.0 * c[None, :], rtol=1e-6)


def test_the_pixels_of_a_polygon() -> None:
    square = polygon_mask([(2, 3), (2, 6), (4, 6), (4, 3)], (8, 9))
    expected = np.zeros((8, 9), bool)
    expected[2:5, 3:7] = True  # with its line
    np.testing.assert_array_equal(square, expected)
    diagonal = polygon_mask([(0, 0), (5, 5)], (8, 9))
    np.testing.assert_array_equal(diagonal, np.eye(8, 9, dtype=bool) & (np.arange(9) < 6))
    rng = np.random.default_rng(0)
    centres = np.argwhere(np.ones((20, 22), bool))
    for corners in rng.uniform(-3, 25, (60, 6, 2)):
        angle = np.arctan2(*(corners - corners.mean(0)).T)
        star = corners[angle.argsort()]  # the line of this one does not cross itself
        inside = Outline(star).contains_points(centres).reshape(20, 22)
        np.testing.assert_array_equal(polygon_mask(star.tolist(), (20, 22)), inside)
    bow_tie = polygon_mask([(0, 0), (0, 10), (10, 0), (10, 10)], (11, 11))
    assert bow_tie[2, 5]
    assert not bow_tie[5, 1]
    with pytest.raises(InputError, match="at least one corner"):
        polygon_mask([], (8, 9))


@pytest.mark.parametrize(
    ("size", "query", "stride", "says"),
    [
        ((63, 80), (0, 0), 8, "at least 64"),
        ((64, 64), (64, 0), 8, "outside"),
        ((64, 64), (0, -1), 8, "outside"),
        ((64, 64), (0, 0), 0, "stride"),
    ],
)
def test_what_cannot_be_mapped_is_refused(
    artifact: Artifact, size: tuple[int, int], query: tuple[int, int], stride: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        similarity_map(artifact, np.zeros((4, *size), np.float32), query, stride=stride)


def test_infinite_pixels_and_no_query_are_refused(pixels: Artifact, tmp_path: Path) -> None:
    image = _image(12, 12)
    with pytest.raises(InputError, match="at least one"):
        PreparedImage(pixels, image).maps([])
    image[0, 0, 0] = np.inf
    with pytest.raises(InputError, match="infinite"):
        PreparedImage(pixels, image)


@pytest.mark.parametrize("count", [1, 7, 16, 500])
def test_some_pixels_of_an_area_lie_evenly_in_it(count: int) -> None:
    rectangle = np.zeros((60, 50), bool)
    rectangle[5:21, 7:20] = True  # so wide that equal steps along its rows stay in one column
    for area in (rectangle, polygon_mask([(3, 4), (50, 9), (22, 48)], (60, 50))):
        total = int(area.sum())
        chosen = spread_over(area, count)
        assert len(set(chosen)) == len(chosen) == min(count, total)
        assert chosen == sorted(chosen)
        here = np.zeros_like(area)
        here[tuple(np.transpose(chosen))] = True
        assert not (here & ~area).any()
        # Every block of the curve's has its part of them, but for one at each of its ends.
        for side in (4, 8, 16, 32):
            for row, col in np.ndindex(60 // side + 1, 50 // side + 1):
                block = np.s_[row * side : (row + 1) * side, col * side : (col + 1) * side]
                assert abs(here[block].sum() - len(chosen) * area[block].sum() / total) < 2
    assert len({col for _, col in spread_over(rectangle, 16)}) > 8
