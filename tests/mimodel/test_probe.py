"""Probes find what is there and nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimodel.artifact import Artifact
from mimodel.data.pairs import LabelledPatches
from mimodel.errors import DataError
from mimodel.probe import (
    across_dates,
    draw_retrieval,
    feature_sets,
    image_statistics,
    probe,
    retrieval_looks,
    retrieval_scores,
)
from mimodel.readouts import bootstrap_interval, fit_classifier, nearest_neighbours


def _clusters(count: int, *, planted: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(4, size=count)
    centres = rng.normal(size=(4, 16)) * 3
    features = (centres[labels] if planted else 0) + rng.normal(size=(count, 16))
    return (features * 50 + 700).astype(np.float32), labels


def _accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    half = len(labels) // 2
    network = fit_classifier(features[:half], labels[:half], 4, iterations=3000, seed=2)
    answers = network(torch.from_numpy(features[half:])).argmax(1).numpy()
    return float((answers == labels[half:]).mean())


def test_the_classifier_reads_a_planted_factor_whatever_its_scale() -> None:
    # Offset 700 and scale 50: only the standardisation folded into the first layer copes.
    assert _accuracy(*_clusters(800, planted=True)) > 0.98


@pytest.mark.slow
def test_the_classifier_gets_chance_where_there_is_nothing() -> None:
    # Binomial, 400 answers at 1/4: standard deviation 0.022.
    assert abs(_accuracy(*_clusters(800, planted=False)) - 0.25) < 0.09


@pytest.mark.parametrize("neighbours", [1, 5])
def test_nearest_neighbours_are_those_of_another_implementation(neighbours: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = _clusters(400, planted=True)
    features += np.random.default_rng(1).normal(size=features.shape).astype(np.float32) * 200
    x, test = features[:300], features[300:]
    theirs = KNeighborsClassifier(neighbours).fit(x, labels[:300]).predict(test)
    ours = nearest_neighbours(x, labels[:300], test, neighbours)
    np.testing.assert_array_equal(ours, theirs)
    assert 0.5 < (ours == labels[300:]).mean() < 0.99


@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_equal_rows_vote_together_in_whatever_order_they_come(neighbours: int) -> None:
    """Sorted by class, as images of a data set are, with many rows at each of a few points."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(3, size=600))
    x = rng.integers(3, size=(600, 2)).astype(np.float32) ** 1.5
    x[0] = 7  # one alone
    test = np.concatenate([np.unique(x, axis=0), [[7.0, 6.9]]]).astype(np.float32)
    expected = []
    for query in test:
        distance = np.linalg.norm(x - query, axis=1)
        near = distance <= np.sort(distance)[min(neighbours, 600) - 1]
        expected.append(np.bincount(labels[near]).argmax())
    for order in (np.arange(600), np.arange(600)[::-1], rng.permutation(600)):
        found = nearest_neighbours(x[order], labels[order], test, neighbours)
        np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 1 or neighbours == 1000


def test_bootstrap_agrees_with_the_normal_interval_of_independent_answers() -> None:
    right = np.random.default_rng(0).random(2000) < 0.8
    low, high = bootstrap_interval(right, np.arange(2000))
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert low == pytest.approx(right.mean() - half, abs=0.003)
    assert high == pytest.approx(right.mean() + half, abs=0.003)


def test_looks_at_one_place_do_not_count_as_independent() -> None:
    right = np.repeat(np.random.default_rng(0).random(100) < 0.5, 20)
    of_places = bootstrap_interval(right, np.repeat(np.arange(100), 20))
    of_looks = bootstrap_interval(right, np.arange(2000))
    assert (of_places[1] - of_places[0]) > 3 * (of_looks[1] - of_looks[0])


def test_image_statistics_are_those_of_the_valid_pixels() -> None:
    rng = np.random.default_rng(0)
    patch = rng.random((1, 2, 64, 64)).astype(np.float32)
    patch[0, 0, :20] = np.nan
    found = image_statistics(patch)[0]
    expected = []
    for statistic in (
        np.mean,
        np.std,
        *(lambda v, q=q: np.percentile(v, q) for q in (10, 25, 50, 75, 90)),
    ):
        expected += [statistic(patch[0, 0, 20:]), statistic(patch[0, 1])]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not image_statistics(np.full((1, 2, 64, 64), np.nan, np.float32)).any()


def _looks(places: int, *, alike: bool) -> LabelledPatches:
    """Two dates of each place; alike: the same texture under another brightness."""
    rng = np.random.default_rng(1)
    ground = rng.uniform(0.05, 0.3, (places, 1, 4, 64, 64))
    gain = rng.uniform(0.6, 1.4, (places, 2, 1, 1, 1))
    looks = ground * gain if alike else rng.uniform(0.05, 0.3, (places, 2, 4, 64, 64))
    return LabelledPatches(
        reflectance=looks.reshape(-1, 4, 64, 64).astype(np.float32),
        label=np.repeat(np.arange(places) % 3, 2),
        place=np.repeat(np.arange(places), 2),
        date=np.tile([0, 1], places),
        split=np.repeat(np.where(np.arange(places) % 2, "test", "train"), 2),
        classes=("a", "b", "c"),
    )


def test_retrieval_finds_the_same_texture_and_nothing_in_noise(artifact: Artifact) -> None:
    for alike in (True, False):
        data = _looks(60, alike=alike)
        planted = {"place itself": np.eye(60, dtype=np.float32)[data.place]}
        scores = {
            (s.features, s.probe): s.accuracy
            for s in retrieval_scores(artifact, data, planted, seed=0)
        }
        assert scores["place itself", "cosine"] == 1.0
        # 60 queries, each among 59: chance 0.017, standard deviation 0.017.
        by_correlation = scores["raw pixels", "correlation"]
        assert by_correlation == 1.0 if alike else by_correlation < 0.12
        assert alike or scores["raw pixels", "Euclidean"] < 0.12


def test_retrieval_is_what_a_loop_finds() -> None:
    """Every look asks for one other date of its place among all looks of all other places."""
    rng = np.random.default_rng(4)
    place = np.repeat([3, 5, 6, 9, 11], [3, 1, 4, 2, 2])
    split = np.where(np.isin(place, [9]), "train", "test")
    label = np.zeros(12, np.int64)
    pixels = np.zeros((12, 1, 64, 64), np.float32)
    data = LabelledPatches(pixels, label, place, np.arange(12), split, ("only",))
    one_date = LabelledPatches(pixels, label, place, label, split, ("only",))
    assert not len(retrieval_looks(one_date, seed=0).query)
    looks = retrieval_looks(data, seed=0)
    test = np.flatnonzero(split == "test")
    np.testing.assert_array_equal(looks.all, test)
    asked = [i for i in range(len(test)) if place[test[i]] != 5]
    assert looks.query.tolist() == asked
    outcomes = set()
    for _ in range(20):
        values = rng.normal(size=(len(test), 2)).astype(np.float32)
        expected = []
        for query, target in zip(looks.query, looks.target, strict=True):
            assert target != query
            assert place[test[target]] == place[test[query]]
            others = [i for i in range(len(test)) if place[test[i]] != place[test[query]]]
            nearest = min(np.linalg.norm(values[query] - values[i]) for i in others)
            expected.append(np.linalg.norm(values[query] - values[target]) < nearest)
        found = looks.found(values)
        np.testing.assert_array_equal(found, expected)
        outcomes |= set(found.tolist())
    assert outcomes == {True, False}


def test_the_picture_of_a_retrieval_needs_no_more_places_than_there_are(
    artifact: Artifact, tmp_path: Path
) -> None:
    data = _looks(4, alike=True)
    draw_retrieval(artifact, data, data.reflectance[:, :, 0, 0], tmp_path / "few.png")
    with Image.open(tmp_path / "few.png") as picture:
        assert picture.size[0] > picture.size[1] > 0


def test_a_probing_puts_the_classifier_into_the_artifact(
    artifact: Artifact, tmp_path: Path
) -> None:
    data = _looks(40, alike=True)
    report, probed = probe(
        artifact,
        data,
        feature_sets(artifact, data),
        head="planted",
        iterations=20,
        seed=0,
        report=lambda _: None,
    )
    assert probed.spec.heads["planted"].classes == data.classes
    assert set(probed.networks.heads) == {"cover", "planted"}
    answers = probed.classify(data.reflectance[data.split == "test"], head="planted").argmax(1)
    scored = next(s for s in report.scores if (s.features, s.probe) == ("shared", "MLP (Table 7)"))
    expected = (answers == data.label[data.split == "test"]).mean()
    assert scored.accuracy == pytest.approx(expected)
    assert {s.features for s in report.scores} == {
        "shared", "image statistics", "untrained encoder",
    }  # fmt: skip
    assert "| shared | linear |" in report.to_markdown()
    assert report.confidence
    assert probed.spec.heads["planted"].temperature == report.confidence.temperature
    assert "expected calibration error" in report.to_markdown()
    # Saved and read again, it is the same.
    again = probed.save(tmp_path / "probed", "# Probed\n")
    some = data.reflectance[:5]
    np.testing.assert_array_equal(
        again.classify(some, head="planted"), probed.classify(some, head="planted")
    )
    strangeness = again.out_of_distribution(again.embed(some), some)
    np.testing.assert_array_equal(strangeness, probed.out_of_distribution(probed.embed(some), some))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_planted_outliers_score_as_such(artifact: Artifact, split: str) -> None:
    """With a validation split, and without one, by a part of the training places."""
    data = _looks(120, alike=True)
    third = np.where(data.place % 4 == 0, split, data.split)
    data = replace(data, split=third)
    features = {"shared": artifact.embed(data.reflectance)}
    report, probed = probe(
        artifact, data, features, head="h", iterations=20, seed=0, report=lambda _: None
    )
    assert report.confidence
    assert report.confidence.held_out == (60 if split == "validation" else 12)
    alike = data.reflectance[data.split == "test"]
    planted = {
        "constant": np.full_like(alike, 0.2),
        "clouds": np.full_like(alike, 0.9) + alike / 20,
        "ten times too bright": alike * 10,
        "pixels sorted": np.sort(alike.reshape(*alike.shape[:2], -1), -1).reshape(alike.shape),
        "other bands": alike + np.array([0, 0.3, 0, 0.3], np.float32)[:, None, None],
    }

    def scores(patches: np.ndarray) -> np.ndarray:
        found = probed.out_of_distribution(probed.embed(patches), patches)
        assert found is not None
        return found

    assert np.median(scores(alike)) < 0.95
    for name, patches in planted.items():
        assert np.quantile(scores(patches), 0.1) >= 0.95, name


def test_a_probing_needs_both_splits(artifact: Artifact) -> None:
    data = _looks(4, alike=True)
    only_train = LabelledPatches(
        data.reflectance, data.label, data.place, data.date, np.full(8, "train"), data.classes
    )
    with pytest.raises(DataError, match="0 test"):
        probe(artifact, only_train, {}, head="h", iterations=1, seed=0, report=lambda _: None)


def test_what_holds_at_every_date_is_told_at_dates_never_seen() -> None:
    """Features that turn with the season fool a probe; those that stay do not."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(120), 4)
    date = np.tile(np.arange(4), 120)
    label = place % 3
    stays = np.eye(3)[label] * 6 + rng.normal(size=(480, 3))
    # At the later dates, each class looks as the next one did at the earlier.
    turns = np.eye(3)[(label + (date >= 2)) % 3] * 6 + rng.normal(size=(480, 3))
    data = LabelledPatches(
        reflectance=np.zeros((480, 1, 1, 1), np.float32),
        label=label,
        place=place,
        date=date,
        split=np.where(place < 80, "train", "test"),
        classes=("a", "b", "c"),
    )
    features = {"stays": stays.astype(np.float32), "turns": turns.astype(np.float32)}
    found = {(one.features, one.probe): one for one in across_dates(data, features)}
    assert len(found) == 8
    for probe_name in ("kNN (5), later", "linear, later", "kNN (5), earlier", "linear, earlier"):
        assert found["stays", probe_name].accuracy > 0.95
        assert found["turns", probe_name].accuracy < 0.05
        assert found["stays", probe_name].low <= found["stays", probe_name].accuracy
    one_date = replace(data, date=np.zeros_like(date))
    assert across_dates(one_date, features) == ()
