"""The leakage matrix: every factor read from every representation, where all factors are known.

The shared representation should give the shared factors and no others, the exclusive one the
others and no shared ones (Sanchez et al. 2019, Tables 1 to 4). Chance and the ideal stand beside.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mimodel.artifact import Artifact
from mimodel.calibration import Estimate, information_of_pairs
from mimodel.data.pairs import Domain, LabelledImages
from mimodel.errors import DataError
from mimodel.readouts import (
    MLP,
    Features,
    Labels,
    Reading,
    bootstrap_interval,
    nearest_neighbours,
    read_out,
)
from mimodel.sheets import draw_learning_curves, draw_retrieval_sheet, draw_tsne

_NEIGHBOURS = (1, 5)
_FEW = 10_000
"""Images up to which raw pixels are compared too; beyond, that takes longer than all the rest."""


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
    information: Estimate | None = None
    """What the statistics networks of the run say of its pairs."""
    seconds: float = 0.0
    """Time that measuring it took."""

    def distance_to_ideal(self, representation: str, probe: str = MLP) -> float:
        """L1 distance between the accuracies and the ideal ones (section 5.1 of the paper)."""
        return sum(
            abs(one.accuracy - one.ideal)
            for one in self.readings
            if (one.representation, one.probe) == (representation, probe) and one.ideal is not None
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
            control = any(cells[name, probe, factor].ideal is None for factor in factors)
            distance = "" if control else f"{self.distance_to_ideal(name, probe):.4f}"
            lines.append(f"| {name} | {probe} | {' | '.join(row)} | {distance} |")
        wanted = [name for name, probe in rows if probe == MLP and name in ("shared", "exclusive")]
        for name in wanted:
            ideals = [f"{100 * (cells[name, MLP, factor].ideal or 0):.2f}" for factor in factors]
            lines.append(f"| {name} | *ideal* | {' | '.join(ideals)} | 0 |")
        said = self.information
        if said is not None:
            closing = [
                "",
                f"Pairs of test images share {said.truth:.3f} nats; the global networks say "
                f"{said.nats:.3f} (mean of T on pairs; equation 2 is {said.jsd:.3f}).",
            ]
        else:
            closing = []
        chances = [f"{100 * cells[(*rows[0], factor)].chance:.2f}" for factor in factors]
        lines += [f"| – | *chance* | {' | '.join(chances)} | |", *closing]
        return "\n".join(lines) + "\n"


def measure(
    artifacts: Mapping[Domain, Artifact],
    images: Callable[[Domain], LabelledImages],
    folder: Path,
    *,
    iterations: int,
    seed: int,
    report: Callable[[str], None],
    tsne: bool = False,
) -> tuple[LeakageMatrix, ...]:
    """Everything about the artifacts of a run, by domain, into `folder`.

    leakage.json, leakage.md, and for each domain retrieval-DOMAIN.png and learning-DOMAIN.png;
    where `tsne` says so, tsne-DOMAIN.png too.
    """
    if tsne:
        import openTSNE  # noqa: F401 -- so that its absence is said before the work
    folder.mkdir(parents=True, exist_ok=True)
    matrices = []
    labelled = {domain: images(domain) for domain in artifacts}
    for domain, artifact in artifacts.items():
        trained_on = artifact.spec.provenance.get("data_digest", "")
        measured_on = labelled[domain].digest
        if trained_on and measured_on and trained_on != measured_on:
            raise DataError(
                f"{artifact.id} was trained on other data, or another split of them, than it is to "
                "be measured on; images that it has learnt could be among those for testing"
            )
    information = information_of_pairs(artifacts, labelled, seed=seed)
    for domain, artifact in artifacts.items():
        began = time.perf_counter()
        data = labelled[domain]
        # An autoencoder has one representation, of which neither is wanted.
        called = {"shared": "latent"} if artifact.spec.alpha is None else {}
        features = {
            called.get(name, name): artifact.embed(data.images, representation=name)
            for name in artifact.spec.representations
        }
        matrix = leakage_matrix(
            artifact.id, features, data, iterations=iterations, seed=seed, report=report
        )
        draw_retrieval_sheet(features, data, folder / f"retrieval-{domain}.png", seed=seed)
        draw_learning_curves(matrix.readings, folder / f"learning-{domain}.png")
        if tsne:
            report(f"t-SNE of the shared representation of {domain.upper()}")
            draw_tsne(next(iter(features.values())), data, folder / f"tsne-{domain}.png", seed=seed)
        took = time.perf_counter() - began
        matrices.append(replace(matrix, information=information, seconds=took))
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
    """Every factor read from every representation; of others than "shared" and "exclusive" nothing
    is wanted.

    Where the images are few, nearest neighbours of raw pixels stand beside, as a control.
    """
    train, test = data.split == "train", data.split == "test"
    if not train.any() or not test.any():
        raise DataError(f"{train.sum()} training and {test.sum()} test images; both are needed")
    single = [name for name, labels in data.factors.items() if len(np.unique(labels[train])) < 2]
    if single:
        raise DataError(
            f"all {train.sum()} training images have one {' and one '.join(single)}, so nothing "
            "can be learnt of it; give more images"
        )
    readings: list[Reading] = []
    group = np.arange(len(data.split)) if data.group is None else data.group
    for factor, labels in data.factors.items():
        chance = 1 / (int(labels.max()) + 1)
        for representation, values in features.items():
            report(f"reading {factor} from the {representation} representation")
            wanted = None
            if representation in ("shared", "exclusive"):
                wanted = (factor in data.shared) == (representation == "shared")
            read = read_out(
                values,
                labels,
                train,
                test,
                classes=int(labels.max()) + 1,
                neighbours=_NEIGHBOURS,
                iterations=iterations,
                seed=seed,
                hidden=data.classifier_width,
            )
            for probe, answer in read.answers.items():
                curve = tuple(read.curve) if probe == MLP else ()
                readings.append(
                    _reading(
                        representation,
                        factor,
                        probe,
                        answer,
                        labels[test],
                        group[test],
                        chance,
                        wanted,
                        curve,
                    )
                )
        if len(labels) <= _FEW:
            pixels = data.images.reshape(len(labels), -1)
            for k in _NEIGHBOURS:
                answer = nearest_neighbours(pixels[train], labels[train], pixels[test], k)
                readings.append(
                    _reading(
                        "raw pixels",
                        factor,
                        f"kNN ({k})",
                        answer,
                        labels[test],
                        group[test],
                        chance,
                        None,
                    )
                )
    return LeakageMatrix(name, int(train.sum()), int(test.sum()), iterations, seed, tuple(readings))


def _reading(
    representation: str,
    factor: str,
    probe: str,
    answer: Labels,
    labels: Labels,
    group: Labels,
    chance: float,
    wanted: bool | None,
    curve: tuple[tuple[int, float], ...] = (),
) -> Reading:
    """`wanted`: should the factor be told? None for a control, of which nothing is wanted."""
    right = np.equal(answer, labels)
    low, high = bootstrap_interval(right, group)
    ideal = None if wanted is None else 1.0 if wanted else chance
    return Reading(
        representation, factor, probe, float(right.mean()), low, high, chance, ideal, curve
    )


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
            LeakageMatrix(
                **{
                    **one,
                    "readings": tuple(map(_parsed, one["readings"])),
                    "information": one["information"] and Estimate(**one["information"]),
                }
            )
            for one in figures
        )
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def _parsed(reading: Mapping[str, Any]) -> Reading:
    curve = tuple((int(step), float(accuracy)) for step, accuracy in reading["curve"])
    return Reading(**{**reading, "curve": curve})


def _cell(one: Reading) -> str:
    return f"{100 * one.accuracy:.2f} ({100 * one.low:.1f} – {100 * one.high:.1f})"
