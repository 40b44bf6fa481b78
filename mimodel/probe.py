"""What a frozen representation knows: probes of labels and retrieval across dates, with intervals.

Every probe reads the representation beside controls on the very same patches: statistics of the
image, and the same encoder untrained. A figure without them says little.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, Networks, frozen
from mimodel.data.pairs import LabelledPatches
from mimodel.errors import DataError
from mimodel.networks import Classifier
from mimodel.novelty import fit_novelty
from mimodel.readouts import (
    Features,
    Labels,
    bootstrap_interval,
    expected_calibration_error,
    fit_classifier,
    fit_temperature,
    linear,
    nearest_neighbours,
    read_out,
    standardised,
)

PERCENTILES = (10, 25, 50, 75, 90)
_NEIGHBOURS = 5
_FOLDS = 5
"""One in so many training places is held out where there is no validation split."""
_FAR = 0.95


@dataclass(frozen=True)
class Score:
    """A share of right answers, with its 95 % interval by bootstrap over places."""

    probe: str
    features: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Confidence:
    """How far confidence and out-of-distribution score can be believed."""

    temperature: float
    held_out: int
    """Patches on which both were calibrated: the validation split, or part of the training one."""
    error: float
    """Expected calibration error on the test patches."""
    error_before: float
    """The same without the temperature."""
    far: float
    """Share of test patches that score above 0.95; 0.05 if they are like the held-out ones."""


@dataclass(frozen=True)
class ProbeReport:
    """All figures of one probing, and what they were measured on."""

    artifact: str
    classes: tuple[str, ...]
    train_samples: int
    test_samples: int
    test_places: int
    majority: float
    """Accuracy of always answering the most frequent training class."""
    scores: tuple[Score, ...]
    test_looks: int
    """Test patches in all: places seen at several dates."""
    retrieval: tuple[Score, ...]
    """Top-1: the same place at another date, among all test patches of other places."""
    across_dates: tuple[Score, ...] = ()
    """Probes fitted on some dates and asked at others."""
    confidence: Confidence | None = None

    def to_markdown(self) -> str:
        """The figures as a table, with what they were measured on."""
        lines = [
            f"Artifact `{self.artifact}`; {len(self.classes)} classes, "
            f"{self.train_samples} training and {self.test_samples} test patches "
            f"({self.test_places} test places); most frequent class {100 * self.majority:.1f} %. "
            "Accuracy in %, with 95 % bootstrap intervals over places.",
            "",
            "| features | probe | accuracy |",
            "|---|---|--:|",
            *[_row(score) for score in self.scores],
        ]
        if self.across_dates:
            lines += [
                "",
                "At dates that the probe has not seen: fitted on the earlier half of the dates and "
                "asked at the later one (later), and the other way round (earlier):",
                "",
                "| features | probe | accuracy |",
                "|---|---|--:|",
                *[_row(score) for score in self.across_dates],
            ]
        if self.retrieval:
            lines += [
                "",
                f"The same place at another date, top-1 among all {self.test_looks} test patches "
                f"(chance {100 / self.test_looks:.2f} %):",
                "",
                "| features | distance | top-1 |",
                "|---|---|--:|",
                *[_row(score) for score in self.retrieval],
            ]
        if self.confidence:
            lines += ["", _confidence_line(self.confidence)]
        return "\n".join(lines) + "\n"


def probe(
    artifact: Artifact,
    data: LabelledPatches,
    features: Mapping[str, Features],
    *,
    head: str,
    iterations: int,
    seed: int,
    report: Callable[[str], None],
) -> tuple[ProbeReport, Artifact]:
    """Probe a frozen artifact on labelled patches; train on "train", score on "test".

    `features` are those of `feature_sets`, the representation first.
    Returns the figures and the artifact with the Table 7 classifier on its shared representation
    as the head of that name, its temperature, and the out-of-distribution score (not yet saved).
    """
    train, test = data.split == "train", data.split == "test"
    if train.sum() < 2 or not test.any() or len(np.unique(data.label[train])) < 2:
        raise DataError(
            f"{train.sum()} training patches of {len(np.unique(data.label[train]))} classes and "
            f"{test.sum()} test patches; at least two classes and one test patch are needed"
        )
    scores = []
    classifier: Classifier | None = None
    for name, values in features.items():
        report(f"probing {name}")
        read = read_out(
            values,
            data.label,
            train,
            test,
            classes=len(data.classes),
            neighbours=(_NEIGHBOURS,),
            iterations=iterations,
            seed=seed,
        )
        classifier = classifier or read.classifier
        scores += [
            _score(kind, name, np.equal(answer, data.label[test]), data.place[test])
            for kind, answer in read.answers.items()
        ]
    assert classifier is not None
    shared = next(iter(features.values()))
    report("calibrating its confidence")
    calibrated, confidence = _calibrated(
        _with_head(artifact, head, data.classes, classifier),
        shared,
        data,
        head,
        lambda rows: fit_classifier(
            shared[rows], data.label[rows], len(data.classes), iterations=iterations, seed=seed
        ),
    )
    shares = np.bincount(data.label[train])
    result = ProbeReport(
        artifact=artifact.id,
        classes=data.classes,
        train_samples=int(train.sum()),
        test_samples=int(test.sum()),
        test_places=len(np.unique(data.place[test])),
        test_looks=int(test.sum()),
        majority=float((data.label[test] == shares.argmax()).mean()),
        scores=tuple(scores),
        retrieval=retrieval_scores(artifact, data, features, seed=seed),
        across_dates=across_dates(data, features),
        confidence=confidence,
    )
    return result, calibrated


def image_statistics(reflectance: npt.NDArray[np.float32]) -> Features:
    """Mean, standard deviation and percentiles of each band of (N, band, H, W), NaN left out.

    A patch without any valid pixel in a band gets zeros there.
    """
    pixels = reflectance.reshape(*reflectance.shape[:2], -1)
    empty = np.isnan(pixels).all(axis=-1, keepdims=True)
    pixels = np.where(empty, np.float32(0), pixels)
    parts = [np.nanmean(pixels, -1), np.nanstd(pixels, -1), *_percentiles(pixels)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _percentiles(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(percentile, N, band) of (N, band, pixel): row by row, which is slow, only where NaN are."""
    found = np.empty((len(PERCENTILES), *pixels.shape[:2]), np.float32)
    whole = ~np.isnan(pixels).any(axis=-1)
    for rows, percentile in ((whole, np.percentile), (~whole, np.nanpercentile)):
        if rows.any():
            found[:, rows] = percentile(pixels[rows], PERCENTILES, axis=-1)
    return found


def across_dates(data: LabelledPatches, features: Mapping[str, Features]) -> tuple[Score, ...]:
    """How well a class is told at dates whose look no training patch has shown.

    Probes fitted on the training places at the earlier half of all dates answer for the test places
    at the later half ("later"), and the other way round ("earlier"). The encoder may have seen all
    dates of the training places; the probe has not. Nothing where a half lacks test patches or has
    fewer than two classes to learn.
    """
    train, test = data.split == "train", data.split == "test"
    seen = np.unique(data.date)
    early = np.isin(data.date, seen[: len(seen) // 2])
    ways = {"later": (train & early, test & ~early), "earlier": (train & ~early, test & early)}
    if any(len(np.unique(data.label[fit])) < 2 or not ask.any() for fit, ask in ways.values()):
        return ()
    scores = []
    for name, values in features.items():
        for asked, (fit, ask) in ways.items():
            scaled, label = standardised(values, fit), data.label
            found = {
                f"kNN ({_NEIGHBOURS})": nearest_neighbours(
                    scaled[fit], label[fit], scaled[ask], _NEIGHBOURS
                ),
                "linear": linear(scaled[fit], label[fit], scaled[ask]),
            }
            scores += [
                _score(f"{kind}, {asked}", name, np.equal(answer, label[ask]), data.place[ask])
                for kind, answer in found.items()
            ]
    return tuple(scores)


def retrieval_scores(
    artifact: Artifact, data: LabelledPatches, features: Mapping[str, Features], *, seed: int
) -> tuple[Score, ...]:
    """Is the place itself, at another date, nearer than every test patch of another place?

    Each test patch whose place was seen twice is a query. It is compared with one other date of
    its place and with all dates of all other test places, its own date among them. Raw pixels are
    compared by Euclidean distance of normalised reflectance, and once more by correlation (each
    patch standardised per band), which forgives a change of brightness.
    """
    looks = retrieval_looks(data, seed)
    if not len(looks.query):
        return ()
    vectors = {(name, "cosine"): unit_features(values, data) for name, values in features.items()}
    pixels = artifact.spec.normalisation(data.reflectance[looks.all])
    vectors["raw pixels", "Euclidean"] = pixels.reshape(len(pixels), -1)
    centred = pixels - pixels.mean((2, 3), keepdims=True)
    shape = centred / (centred.std((2, 3), keepdims=True) + 1e-6)
    vectors["raw pixels", "correlation"] = _unit(shape.reshape(len(shape), -1))
    return tuple(
        _score(distance, name, looks.found(values), data.place[looks.all][looks.query])
        for (name, distance), values in vectors.items()
    )


@dataclass(frozen=True, eq=False)
class RetrievalLooks:
    """Which test patches are asked for, and which one each of them should find."""

    all: Labels
    """Samples of the test split; the others here are indices into it."""
    place: Labels
    query: Labels
    target: Labels

    def found(self, values: Features) -> npt.NDArray[np.bool_]:
        """Whether each query's target is the Euclidean nearest of what it is compared with."""
        queries = values[self.query]
        distance = (values**2).sum(1)[None, :] - 2 * queries @ values.T
        rows = np.arange(len(self.query))
        of_target = distance[rows, self.target]
        distance[self.place[None, :] == self.place[self.query][:, None]] = np.inf
        found: npt.NDArray[np.bool_] = of_target < distance.min(1)
        return found


def retrieval_looks(data: LabelledPatches, seed: int) -> RetrievalLooks:
    """Every test patch whose place was seen at another date, with one such date drawn."""
    rng = np.random.default_rng([seed, 5])
    test = np.flatnonzero(data.split == "test")
    place = data.place[test]
    query: list[int] = []
    target: list[int] = []
    date = data.date[test]
    for look in range(len(test)):
        others = np.flatnonzero((place == place[look]) & (date != date[look]))
        if len(others):
            query.append(look)
            target.append(int(rng.choice(others)))
    if len(np.unique(place[query])) < 2:
        query, target = [], []
    return RetrievalLooks(
        all=test,
        place=place,
        query=np.array(query, np.int64),
        target=np.array(target, np.int64),
    )


def unit_features(values: Features, data: LabelledPatches) -> Features:
    """Test features standardised by the training split, at length one."""
    return _unit(standardised(values, data.split == "train")[data.split == "test"])


def write_report(report: ProbeReport, folder: Path) -> None:
    """probe.json and probe.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / "probe.md").write_text(report.to_markdown())


def draw_retrieval(
    artifact: Artifact,
    data: LabelledPatches,
    features: Features,
    picture: Path,
    *,
    rows: int = 6,
    seed: int = 0,
) -> None:
    """Queries at the left, the nearest five test patches; a green frame is the same place.

    `features` (sample, dim) are those that are compared, standardised, by cosine.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    looks = retrieval_looks(data, seed)
    values = unit_features(features, data)
    chosen = np.random.default_rng(seed).permutation(looks.query)[:rows]
    figure, axes = plt.subplots(len(chosen), 6, figsize=(7.2, 1.25 * len(chosen)), squeeze=False)
    for axis_row, sample in zip(axes, chosen, strict=True):
        nearest = np.argsort(-(values @ values[sample]))
        shown = [sample, *nearest[nearest != sample][:5]]
        for axis in axis_row[len(shown) :]:
            axis.set_axis_off()
        for axis, look in zip(axis_row, shown, strict=False):
            axis.imshow(_true_colour(artifact, data.reflectance[looks.all[look]]))
            axis.set_xticks([])
            axis.set_yticks([])
            hit = look != sample and looks.place[look] == looks.place[sample]
            for spine in axis.spines.values():
                spine.set(color="tab:green" if hit else "lightgrey", linewidth=2.5 if hit else 0.8)
        label = data.classes[data.label[looks.all[sample]]]
        axis_row[0].set_ylabel(label, fontsize=6)
    axes[0][0].set_title("query", fontsize=8)
    axes[0][1].set_title("nearest, all dates", fontsize=8, loc="left")
    figure.tight_layout(pad=0.4)
    figure.savefig(picture, dpi=140)
    plt.close(figure)


def feature_sets(artifact: Artifact, data: LabelledPatches) -> dict[str, Features]:
    """By name, the features that every probe reads: the representation and its controls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = Artifact(artifact.spec, artifact.digest, frozen(Networks(artifact.spec)))
    return {
        **{
            name: artifact.embed(data.reflectance, representation=name)
            for name in artifact.spec.representations
        },
        "image statistics": image_statistics(data.reflectance),
        "untrained encoder": blank.embed(data.reflectance),
    }


def _score(probe_name: str, features: str, right: npt.NDArray[np.bool_], place: Labels) -> Score:
    low, high = bootstrap_interval(right, place)
    return Score(probe_name, features, float(right.mean()), low, high)


def _unit(values: Features) -> Features:
    unit: Features = values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-12)
    return unit


def _true_colour(artifact: Artifact, patch: Features) -> Features:
    names: Sequence[str] = artifact.spec.bands
    shown = [names.index(band) for band in ("B04", "B03", "B02") if band in names]
    order = shown if len(shown) == 3 else [0, 0, 0]
    picture: Features = np.clip(np.nan_to_num(patch[order]).transpose(1, 2, 0) / 0.25, 0, 1)
    return picture


def _with_head(
    artifact: Artifact, name: str, classes: tuple[str, ...], classifier: Classifier
) -> Artifact:
    first = classifier.layers[0]
    assert isinstance(first, nn.Linear)
    head = HeadSpec(classes=classes, hidden=first.out_features)
    spec = artifact.spec.model_copy(update={"heads": {**artifact.spec.heads, name: head}})
    return _remade(artifact, spec, _named(f"heads.{name}", classifier))


def _calibrated(
    artifact: Artifact,
    shared: Features,
    data: LabelledPatches,
    head: str,
    fit: Callable[[npt.NDArray[np.bool_]], Classifier],
) -> tuple[Artifact, Confidence]:
    """The artifact with the temperature of its head and an out-of-distribution score.

    Both come from the validation split. Where there is none, from a part of the training places,
    which a second classifier made by `fit` on the other rows has not seen.
    """
    train, test = data.split == "train", data.split == "test"
    held_out = data.split == "validation"
    judge = artifact.networks.heads[head]
    if not held_out.any():
        held_out = train & np.isin(data.place, np.unique(data.place[train])[::_FOLDS])
        train &= ~held_out
        judge = fit(train)
    with torch.inference_mode():
        logits = judge(torch.from_numpy(shared[held_out])).numpy()
    temperature = fit_temperature(logits, data.label[held_out])
    before = artifact.probabilities(shared[test], head)
    novelty_spec, novelty = fit_novelty(
        *(artifact.described(shared[rows], data.reflectance[rows]) for rows in (train, held_out))
    )
    heads = artifact.spec.heads
    calibrated = heads[head].model_copy(update={"temperature": temperature})
    spec = artifact.spec.model_copy(
        update={"heads": {**heads, head: calibrated}, "novelty": novelty_spec}
    )
    made = _remade(artifact, spec, _named("novelty", novelty))
    scores = made.out_of_distribution(shared[test], data.reflectance[test])
    assert scores is not None
    return made, Confidence(
        temperature=temperature,
        held_out=int(held_out.sum()),
        error=expected_calibration_error(made.probabilities(shared[test], head), data.label[test]),
        error_before=expected_calibration_error(before, data.label[test]),
        far=float((scores > _FAR).mean()),
    )


def _remade(artifact: Artifact, spec: ArtifactSpec, more: Mapping[str, Tensor]) -> Artifact:
    networks = Networks(spec)
    networks.load_state_dict({**artifact.networks.state_dict(), **more})
    return Artifact(spec, artifact.digest, frozen(networks))


def _named(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def _confidence_line(found: Confidence) -> str:
    return (
        f"Confidence of the MLP on the shared representation: expected calibration error "
        f"{100 * found.error:.1f} % on the test patches ({100 * found.error_before:.1f} % without "
        f"the temperature {found.temperature:.2f}, which was fitted on {found.held_out} held-out "
        f"patches). Of the test patches {100 * found.far:.1f} % have an out-of-distribution score "
        f"above {_FAR}; of patches like the held-out ones it would be {100 * (1 - _FAR):.0f} %."
    )


def _row(score: Score) -> str:
    interval = f"{100 * score.low:.1f} – {100 * score.high:.1f}"
    return f"| {score.features} | {score.probe} | {100 * score.accuracy:.1f} ({interval}) |"
