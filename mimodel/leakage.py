"""The leakage matrix: every factor read from every representation, where all factors are known.

The shared representation should give the shared factors and no others, the exclusive one the
others and no shared ones (Sanchez et al. 2019, Tables 1 to 4). Chance and the ideal stand beside.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mimodel.artifact import Artifact
from mimodel.data.pairs import Domain, LabelledImages
from mimodel.errors import DataError
from mimodel.readouts import MLP, Features, bootstrap_interval, read_out, standardised

_NEIGHBOURS = (1, 5)
_SHOWN = 9


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
    ideal: float
    """1 where the representation should tell the factor, else chance."""


@dataclass(frozen=True)
class LeakageMatrix:
    """All readings of one artifact, and what they were measured on."""

    artifact: str
    train_samples: int
    test_samples: int
    iterations: int
    """Steps of the classifier of Table 7."""
    seed: int
    """Of the classifiers."""
    readings: tuple[Reading, ...]

    def distance_to_ideal(self, representation: str, probe: str = MLP) -> float:
        """L1 distance between the accuracies and the ideal ones (section 5.1 of the paper)."""
        return sum(
            abs(one.accuracy - one.ideal)
            for one in self.readings
            if (one.representation, one.probe) == (representation, probe)
        )

    def to_markdown(self) -> str:
        """One row a representation and probe, one column a factor; in %, with 95 % intervals."""
        factors = list(dict.fromkeys(one.factor for one in self.readings))
        rows = list(dict.fromkeys((one.representation, one.probe) for one in self.readings))
        cells = {(one.representation, one.probe, one.factor): one for one in self.readings}
        lines = [
            f"Artifact `{self.artifact}`; {self.train_samples} training and {self.test_samples} "
            f"test images; {self.iterations} steps of the MLP. Accuracy in %, with 95 % bootstrap "
            "intervals; the last column is the L1 distance to the ideal.",
            "",
            f"| representation | probe | {' | '.join(factors)} | distance |",
            f"|---|---|{'--:|' * len(factors)}--:|",
        ]
        for name, probe in rows:
            row = [_cell(cells[name, probe, factor]) for factor in factors]
            distance = f"{self.distance_to_ideal(name, probe):.4f}"
            lines.append(f"| {name} | {probe} | {' | '.join(row)} | {distance} |")
        for name in dict.fromkeys(name for name, _ in rows):
            ideals = [f"{100 * cells[name, MLP, factor].ideal:.2f}" for factor in factors]
            lines.append(f"| {name} | *ideal* | {' | '.join(ideals)} | 0 |")
        chances = [f"{100 * cells[(*rows[0], factor)].chance:.2f}" for factor in factors]
        return "\n".join([*lines, f"| – | *chance* | {' | '.join(chances)} | |"]) + "\n"


def measure(
    artifacts: Mapping[Domain, Artifact],
    images: Callable[[Domain], LabelledImages],
    folder: Path,
    *,
    iterations: int,
    seed: int,
    report: Callable[[str], None],
) -> tuple[LeakageMatrix, ...]:
    """Everything about the artifacts of a run, by domain, into `folder`.

    leakage.json, leakage.md, and for each domain retrieval-DOMAIN.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matrices = []
    for domain, artifact in artifacts.items():
        data = images(domain)
        features = {
            name: artifact.embed(data.images, representation=name)
            for name in artifact.spec.representations
        }
        matrices.append(
            leakage_matrix(
                artifact.id, features, data, iterations=iterations, seed=seed, report=report
            )
        )
        draw_retrieval_sheet(features, data, folder / f"retrieval-{domain}.png", seed=seed)
    write_matrices(matrices, folder)
    return tuple(matrices)


def leakage_matrix(
    name: str,
    features: Mapping[str, Features],
    data: LabelledImages,
    *,
    iterations: int,
    seed: int,
    report: Callable[[str], None],
) -> LeakageMatrix:
    """Every factor read from every representation; what is not named "shared" is exclusive."""
    train, test = data.split == "train", data.split == "test"
    if not train.any() or not test.any():
        raise DataError(f"{train.sum()} training and {test.sum()} test images; both are needed")
    readings: list[Reading] = []
    for representation, values in features.items():
        for factor, labels in data.factors.items():
            report(f"reading {factor} from the {representation} representation")
            classes = int(labels.max()) + 1
            read = read_out(
                values,
                labels,
                train,
                test,
                classes=classes,
                neighbours=_NEIGHBOURS,
                iterations=iterations,
                seed=seed,
            )
            wanted = (factor in data.shared) == (representation == "shared")
            for probe, answer in read.answers.items():
                right = np.equal(answer, labels[test])
                low, high = bootstrap_interval(right, np.arange(len(right)))
                readings.append(
                    Reading(
                        representation=representation,
                        factor=factor,
                        probe=probe,
                        accuracy=float(right.mean()),
                        low=low,
                        high=high,
                        chance=1 / classes,
                        ideal=1.0 if wanted else 1 / classes,
                    )
                )
    return LeakageMatrix(name, int(train.sum()), int(test.sum()), iterations, seed, tuple(readings))


def write_matrices(matrices: Sequence[LeakageMatrix], folder: Path) -> None:
    """leakage.json and leakage.md in `folder`, one matrix an artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = [asdict(matrix) for matrix in matrices]
    (folder / "leakage.json").write_text(json.dumps(figures, indent=2) + "\n")
    (folder / "leakage.md").write_text("\n".join(matrix.to_markdown() for matrix in matrices))


def read_matrices(folder: Path) -> tuple[LeakageMatrix, ...]:
    """What `write_matrices` wrote into `folder`; nothing where there is nothing whole."""
    try:
        figures = json.loads((folder / "leakage.json").read_text())
        return tuple(
            LeakageMatrix(**{**one, "readings": tuple(Reading(**each) for each in one["readings"])})
            for one in figures
        )
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def draw_retrieval_sheet(
    features: Mapping[str, Features],
    data: LabelledImages,
    picture: Path,
    *,
    rows: int = 5,
    seed: int = 0,
) -> None:
    """Figure 4 of the paper: queries, and the nearest test images by each representation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    train, test = data.split == "train", np.flatnonzero(data.split == "test")
    queries = np.random.default_rng(seed).choice(test, min(rows, len(test)), replace=False)
    figure, axes = plt.subplots(
        len(queries) * len(features), _SHOWN + 1, figsize=(8, 0.8 * len(queries) * len(features))
    )
    for index, (name, values) in enumerate(features.items()):
        scaled = standardised(values, train)
        for query, row in zip(queries, axes[index * len(queries) :], strict=False):
            distance = ((scaled[test] - scaled[query]) ** 2).sum(1)
            nearest = [one for one in test[distance.argsort()] if one != query][:_SHOWN]
            for axis in row:
                axis.set_axis_off()
            for axis, sample in zip(row, [query, *nearest], strict=False):
                axis.imshow(data.images[sample].transpose(1, 2, 0).clip(0, 1))
            row[0].set_title("query", fontsize=6, pad=2)
            row[1].set_title(f"nearest by the {name} representation", fontsize=6, pad=2, loc="left")
    figure.tight_layout(pad=0.3)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def _cell(one: Reading) -> str:
    return f"{100 * one.accuracy:.2f} ({100 * one.low:.1f} – {100 * one.high:.1f})"
