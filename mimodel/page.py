"""The page of a study, in Markdown: the published figures and ours side by side."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from mimodel.artifact import Artifact
from mimodel.data.pairs import DOMAINS
from mimodel.leakage import LeakageMatrix
from mimodel.readouts import MLP, Reading
from mimodel.sessions import Session, read_sessions
from mimodel.studies import Study
from mimodel.train import TrainingResult

_SHOWN = (MLP, "linear", "kNN (5)")


@dataclass(frozen=True)
class Outcome:
    """One arm of a study under one seed."""

    runs: tuple[TrainingResult, ...]
    published: tuple[int, ...]
    """Iterations of each run in the paper."""
    matrices: tuple[LeakageMatrix, ...]
    folder: str
    """Of the measures, in that of the study."""


Outcomes = Mapping[str, Sequence[Outcome]]
"""By arm, one a seed."""


def study_page(
    study: Study, out: Path, changes: Sequence[str], classifier_iterations: int, outcomes: Outcomes
) -> str:
    """What a study in the folder `out` has found; pictures are named relative to it.

    `changes` are what makes it a variant of the paper's.
    """
    everything = [one for arm in outcomes.values() for one in arm]
    runs = {run.folder: run for one in everything for run in one.runs}
    measured = {one.folder: one.matrices for one in everything}
    sources = list(study.published)
    lines = [
        f"# {study.title}",
        "",
        _took(runs.values(), measured.values())
        + (f" Variant: {', '.join(changes)}." if changes else ""),
        "",
        "| arm | run | iterations | the paper's |",
        "|---|---|--:|--:|",
        *_iterations(study, outcomes),
        "",
        "| run | steps | commit | device | precision | torch |",
        "|---|--:|---|---|---|---|",
        *[row for run in runs.values() for row in _sessions(run, out)],
        "",
        f"Test accuracy in % by the classifier of Table 7 ({classifier_iterations} steps on "
        "standardised features; the paper: 10,000), a linear model and nearest neighbours. "
        + _SPREAD
        * (max(map(len, outcomes.values())) > 1),
        "",
        f"| arm | domain | representation | factor | ideal | {''.join(f'{s} | ' for s in sources)}"
        + " | ".join(("ours", *_SHOWN[1:]))
        + " |",
        f"|---|---|---|---|--:|{'--:|' * (len(sources) + len(_SHOWN))}",
        *[row for arm in study.arms for row in _rows(study, arm.name, outcomes[arm.name])],
        "",
        "L1 distance to the ideal: " + "; ".join(_distances(outcomes)) + ".",
        "",
        *[line for arm, seeds in outcomes.items() for line in _information(arm, seeds)],
        *[line for domain in DOMAINS if study.swept for line in _sweep(out, domain)],
        *[line for folder in runs for line in _run(folder.relative_to(out), folder)],
        *[line for one in everything for line in _pictures(one)],
        "All readings, with intervals: "
        + ", ".join(f"[{where}]({where}/leakage.md)" for where in measured)
        + ".",
        "",
    ]
    return "\n".join(lines)


_SPREAD = (
    "Ours is the mean over the seeds, with a 95 % interval of Student's t, and the least and the "
    "greatest."
)


def _took(runs: Collection[TrainingResult], matrices: Collection[Sequence[LeakageMatrix]]) -> str:
    training = sum(run.seconds for run in runs) / 3600
    measuring = sum(one.seconds for matrix in matrices for one in matrix) / 60
    and_measuring = f", {measuring:.0f} minutes of measuring" if measuring else ""
    return f"{training:.1f} hours of training{and_measuring}."


def _sessions(run: TrainingResult, out: Path) -> list[str]:
    """A row for each stretch of a run that one code on one machine has made."""
    stretches: list[tuple[int, Session]] = []
    for one in read_sessions(run.folder):
        same = (one.commit, one.device, one.precision, one.versions)
        before = stretches[-1][1] if stretches else None
        if before and same == (before.commit, before.device, before.precision, before.versions):
            continue
        stretches.append((one.step, one))
    ends = [*[begin for begin, _ in stretches[1:]], run.step]
    name = run.folder.relative_to(out)
    if not stretches:  # a run of before there were any: what its artifact says is of the last
        said = Artifact.load(run.artifacts[0]).spec.provenance
        cells = (said[key] for key in ("commit", "device", "precision", "torch"))
        return [f"| {name} | to {run.step} | {' | '.join(cells)} |"]
    return [
        f"| {name} | {begin} to {end} | {one.commit} | {one.device} | {one.precision} | "
        f"{one.versions['torch']} |"
        for (begin, one), end in zip(stretches, ends, strict=True)
    ]


def _run(name: Path, folder: Path) -> list[str]:
    """What a run was told, folded, and the curves of its terms."""
    return [
        f"{name}: ![terms]({name}/curves.png)",
        "",
        f"<details><summary>configuration of {name}</summary>",
        "",
        "```yaml",
        (folder / "config.yaml").read_text().rstrip(),
        "```",
        "",
        "</details>",
        "",
    ]


def _sweep(out: Path, domain: str) -> list[str]:
    picture = f"sweep-{domain}.png"
    return [f"![accuracy from E_{domain.upper()} over lambda]({picture})", ""] * (
        out / picture
    ).exists()


def _iterations(study: Study, outcomes: Outcomes) -> list[str]:
    rows = []
    for arm in study.arms:
        first = outcomes[arm.name][0]
        for stage, run, paper in zip(arm.stages, first.runs, first.published, strict=True):
            rows.append(f"| {arm.name} | {stage.folder} | {run.step} | {paper} |")
    return rows


def _rows(study: Study, arm: str, outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for index, matrix in enumerate(outcomes[0].matrices):
        domain = DOMAINS[index]
        pairs = dict.fromkeys((one.representation, one.factor) for one in matrix.readings)
        for representation, factor in pairs:
            readings = {
                probe: _found(outcomes, index, representation, factor, probe) for probe in _SHOWN
            }
            ideal = next(each[0].ideal for each in readings.values() if each)
            published = [
                figures.get((arm, domain, representation, factor))
                for figures in study.published.values()
            ]
            cells = [
                *(arm, domain.upper(), representation, factor),
                "" if ideal is None else f"{100 * ideal:.2f}",
                *["" if value is None else f"{value:.2f}" for value in published],
                *[_over_seeds(each) for each in readings.values()],
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _found(
    outcomes: Sequence[Outcome], index: int, representation: str, factor: str, probe: str
) -> list[Reading]:
    """One reading a seed, where that probe read the representation."""
    return [
        one
        for outcome in outcomes
        for one in outcome.matrices[index].readings
        if (one.representation, one.factor, one.probe) == (representation, factor, probe)
    ]


def _over_seeds(readings: Sequence[Reading]) -> str:
    return _spread([100 * one.accuracy for one in readings], 2) if readings else ""


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean over seeds; of several with its 95 % interval, the least and the greatest."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def _distances(outcomes: Outcomes) -> list[str]:
    lines = []
    for arm, seeds in outcomes.items():
        for index, matrix in enumerate(seeds[0].matrices):
            for letter, name in (("S", "shared"), ("E", "exclusive")):
                if any(one.representation == name for one in matrix.readings):
                    values = [one.matrices[index].distance_to_ideal(name) for one in seeds]
                    where = f"{letter}_{DOMAINS[index].upper()}"
                    lines.append(f"{arm}, {where} {_spread(values, 4)}")
    return lines


def _information(arm: str, seeds: Sequence[Outcome]) -> list[str]:
    said = [one.matrices[0].information for one in seeds]
    known = [one for one in said if one is not None]
    if not known:
        return []
    nats = ", ".join(f"{one.nats:.3f}" for one in known)
    return [
        f"{arm}: pairs of test images share {known[0].truth:.3f} nats; the global networks say "
        f"{nats} (mean of T on pairs).",
        "",
    ]


def _pictures(outcome: Outcome) -> list[str]:
    where = outcome.folder
    return [
        f"{where}: ![retrieval]({where}/retrieval-{domain}.png) "
        f"![learning curves]({where}/learning-{domain}.png)\n"
        for domain in DOMAINS[: len(outcome.matrices)]
    ]
