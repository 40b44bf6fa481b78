"""What reads a frozen representation: nearest neighbours, a linear model, the MLP of Table 7.

None of them sees a test sample while it is fitted, and accuracies come with intervals.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mimodel.networks import Classifier

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

MLP = "MLP (Table 7)"
_BOOTSTRAPS = 2000
_WATCHED = 20
"""Points of a learning curve."""


@dataclass(frozen=True, eq=False)
class ReadOut:
    """What was read from features of test samples, by probe, and the classifier that remains."""

    answers: Mapping[str, Labels]
    classifier: Classifier
    curve: Sequence[tuple[int, float]]
    """Accuracy of the MLP on the test samples over its steps."""


@dataclass(frozen=True)
class Reading:
    """How well one probe reads one factor from one representation; shares from 0 to 1."""

    representation: str
    factor: str
    probe: str
    accuracy: float
    low: float
    high: float
    chance: float
    """One in as many as there are classes."""
    ideal: float | None
    """1 where the representation should tell the factor, else chance; none for a control."""
    curve: tuple[tuple[int, float], ...] = ()
    """Accuracy over the steps of the classifier, where one was fitted (supplement, figure 1)."""


def read_out(
    features: Features,
    labels: Labels,
    train: npt.NDArray[np.bool_],
    test: npt.NDArray[np.bool_],
    *,
    classes: int,
    neighbours: Sequence[int],
    iterations: int,
    seed: int,
    hidden: int = 32,
) -> ReadOut:
    """Fit every probe on the samples `train` and answer for `test`; `neighbours` are the k of kNN.

    Nearest neighbours and the linear model read standardised features.
    """
    scaled = standardised(features, train)
    x, y = scaled[train], labels[train]
    curve: list[tuple[int, float]] = []

    def watch(step: int, network: Classifier) -> None:
        right = np.equal(answers(network, features[test]), labels[test])
        curve.append((step, float(right.mean())))

    network = fit_classifier(
        features[train], y, classes, iterations=iterations, seed=seed, hidden=hidden, watch=watch
    )
    by_probe = {
        **{f"kNN ({k})": nearest_neighbours(x, y, scaled[test], k) for k in neighbours},
        "linear": linear(x, y, scaled[test]),
        MLP: answers(network, features[test]),
    }
    return ReadOut(by_probe, network, curve)


def fit_classifier(
    features: Features,
    labels: Labels,
    classes: int,
    *,
    iterations: int,
    seed: int,
    hidden: int = 32,
    watch: Callable[[int, Classifier], None] = lambda _step, _network: None,
) -> Classifier:
    """The classifier of Table 7, trained as supplement 1.4 says: Adam 1e-4, batches of 64.

    Features are standardised for training; the standardisation is folded into the first layer of
    what is returned, and of what `watch` is shown now and then, which read features as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.from_numpy(each) for each in (features.mean(0), _spread(features)))
    x, y = (torch.from_numpy(features) - mean) / std, torch.from_numpy(labels)
    every = -(-iterations // _WATCHED)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier(features.shape[1], classes, hidden)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    with _one_thread():
        for step in range(1, iterations + 1):
            chosen = torch.randint(len(x), (min(64, len(x)),), generator=generator)
            optimiser.zero_grad()
            cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimiser.step()
            if step % every == 0 or step == iterations:
                watch(step, _folded(network, mean, std))
    return _folded(network, mean, std)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads over tensors this small wait for each other, for minutes on a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _folded(network: Classifier, mean: Tensor, std: Tensor) -> Classifier:
    """A frozen copy whose first layer standardises what it reads."""
    copied = copy.deepcopy(network)
    first = copied.layers[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight /= std
        first.bias.sub_(first.weight @ mean)
    return copied.eval().requires_grad_(False)


def answers(network: Classifier, features: Features) -> Labels:
    """The most probable class of each sample."""
    with torch.inference_mode():
        classes: Labels = network(torch.from_numpy(features)).argmax(1).numpy()
    return classes


def nearest_neighbours(x: Features, y: Labels, test: Features, neighbours: int) -> Labels:
    """The majority of the classes `y` among the nearest rows of `x`, by Euclidean distance.

    Rows that are equal vote together: of a representation of few values, hundreds may lie at one
    point, and whichever of them came first would answer for all.
    """
    from sklearn.neighbors import NearestNeighbors

    points, index = np.unique(x, axis=0, return_inverse=True)
    votes = np.zeros((len(points), int(y.max()) + 1), np.int64)
    np.add.at(votes, (index.ravel(), y), 1)
    search = NearestNeighbors(n_neighbors=min(neighbours, len(points))).fit(points)
    near = search.kneighbors(test, return_distance=False)
    # All rows of a point at which there were fewer than `neighbours` before.
    rows = votes.sum(1)[near]
    counts = (rows.cumsum(1) - rows < neighbours)[..., None] * votes[near]
    classes: Labels = counts.sum(1).argmax(1)
    return classes


def linear(x: Features, y: Labels, test: Features) -> Labels:
    """The classes that a logistic regression of `y` on `x` gives `test`."""
    from sklearn.linear_model import LogisticRegression

    classes: Labels = LogisticRegression(max_iter=2000).fit(x, y).predict(test)
    return classes


def bootstrap_interval(
    right: npt.NDArray[np.bool_], place: Labels, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the share of right answers, by resampling whole places.

    Looks at one place at several dates are not independent, so places are what is drawn.
    """
    _, index = np.unique(place, return_inverse=True)
    hits, counts = np.bincount(index, right), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(_BOOTSTRAPS, len(counts)))
    shares = hits[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def standardised(values: Features, train: npt.NDArray[np.bool_]) -> Features:
    """Mean 0 and deviation 1 over the training samples."""
    scaled: Features = (values - values[train].mean(0)) / _spread(values[train])
    return scaled


def _spread(values: Features) -> Features:
    """Deviation of each feature, never so small beside its mean that rounding is what is left."""
    floor = 1e-3 * np.abs(values.mean(0)) + 1e-6
    spread: Features = np.maximum(values.std(0), floor).astype(np.float32)
    return spread


def fit_temperature(logits: Features, labels: Labels) -> float:
    """The T that makes softmax(logits / T) likeliest to give `labels` (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    scores, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(scores / np.exp(log_temperature), truth))

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def expected_calibration_error(probabilities: Features, labels: Labels, bins: int = 15) -> float:
    """How far confidence is from accuracy: the mean over answers of the gap of their bin.

    Answers are put into bins of equal width by the probability (N, class) of the chosen class
    (Guo et al. 2017, equation 3).
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, confidence, bins) - np.bincount(bin_of, right, bins)
    return float(np.abs(gaps).sum() / len(labels))
