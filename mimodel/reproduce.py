"""A study of the paper from data to report: both stages, every factor, one page, resumable.

    OUT/seed-0/shared       run folder of stage 1
    OUT/seed-0/exclusive    run folder of stage 2, on stage 1's artifacts
    OUT/seed-0/leakage      leakage.json and leakage.md
    OUT/report.md           the paper's figures and ours side by side

The same command goes on where it was stopped and makes nothing twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimodel.artifact import Artifact
from mimodel.config import RunConfig, load_config
from mimodel.data.mnist import labelled_mnist
from mimodel.data.pairs import DOMAINS, Domain
from mimodel.errors import ConfigError
from mimodel.leakage import LeakageMatrix, measure, read_matrices
from mimodel.readouts import MLP
from mimodel.train import Report, TrainingResult, train

PAPER_MNIST: Mapping[tuple[Domain, str, str], float] = {
    ("x", "shared", "digit"): 94.48,
    ("x", "shared", "background colour"): 8.22,
    ("x", "exclusive", "background colour"): 99.99,
    ("x", "exclusive", "digit"): 13.20,
    ("y", "shared", "digit"): 94.27,
    ("y", "shared", "digit colour"): 8.83,
    ("y", "exclusive", "digit colour"): 99.92,
    ("y", "exclusive", "digit"): 13.75,
}
"""Tables 1 and 2 of the paper: test accuracy in %, by the classifier of Table 7."""

_OF_THE_STUDY = ("data.folder", "training.seed", "method.shared", "method.encoders")
_STAGES = ("shared", "exclusive")
_EXCLUSIVE_SHARE = 5
"""Supplement 1.1: 50,000 iterations of the shared stage, a fifth of that of the exclusive one."""


@dataclass(frozen=True)
class Settings:
    """What may be chosen of a study; the rest is the paper's."""

    configs: Path
    """Folder of the configurations, `configs` of the source tree."""
    extra: Sequence[Path]
    """Configurations that win over the paper's; they make a variant."""
    overrides: Sequence[str]
    """As `key=value` for both stages, `shared:key=value` or `exclusive:key=value` for one."""
    iterations: int | None
    """Of the shared stage; None: the paper's."""
    seeds: int
    classifier_iterations: int


def reproduce_mnist(
    data: Path,
    out: Path,
    settings: Settings,
    *,
    training: Callable[[str], Report],
    report: Callable[[str], None],
) -> Path | None:
    """Colored-MNIST; the report's path, or None where it was interrupted before the end.

    `training` gives what follows the run of that name; `report` is told what comes next.
    """
    matrices: list[tuple[LeakageMatrix, ...]] = []
    results: list[TrainingResult] = []
    for seed in range(settings.seeds):
        folder = out / f"seed-{seed}"
        for stage in _STAGES:
            name = f"seed-{seed}/{stage}"
            config = _stage(settings, stage, data, folder, seed)
            report(f"{name}: {config.training.iterations} iterations")
            result = train(config, folder / stage, training(name))
            if not result.finished:
                return None
            results.append(result)
        matrices.append(_matrices(folder, data, settings, seed, report))
    page = out / "report.md"
    page.write_text(_page(out, settings, matrices, results))
    return page


def _stage(settings: Settings, stage: str, data: Path, folder: Path, seed: int) -> RunConfig:
    files = [
        settings.configs / "data" / "colored-mnist.yaml",
        settings.configs / "method" / f"colored-mnist-{stage}.yaml",
        *settings.extra,
    ]
    overrides = []
    for override in settings.overrides:
        of_stage, colon, setting = override.partition(":")
        if not colon or of_stage not in _STAGES:
            overrides.append(override)
        elif of_stage == stage:
            overrides.append(setting)
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _OF_THE_STUDY:
            raise ConfigError(f"{key} is the study's own; it cannot be set")
    # JSON is YAML, and keeps a path a string whatever it looks like.
    overrides += [f"data.folder={json.dumps(str(data))}", f"training.seed={seed}"]
    if stage == "exclusive":
        overrides.append(f"method.shared={json.dumps(str(folder / 'shared'))}")
    if settings.iterations:
        share = 1 if stage == "shared" else _EXCLUSIVE_SHARE
        overrides.append(f"training.iterations={max(1, settings.iterations // share)}")
    return load_config(files, overrides)


def _matrices(
    folder: Path, data: Path, settings: Settings, seed: int, report: Callable[[str], None]
) -> tuple[LeakageMatrix, ...]:
    """The leakage matrices of both domains, read anew only where the artifacts are others."""
    artifacts = {d: Artifact.load(folder / "exclusive" / f"artifact-{d}") for d in DOMAINS}
    kept = read_matrices(folder / "leakage")
    wanted = [(one.id, settings.classifier_iterations, seed) for one in artifacts.values()]
    if [(one.artifact, one.iterations, one.seed) for one in kept] == wanted:
        return kept
    return measure(
        artifacts,
        lambda domain: labelled_mnist(data, domain, seed=seed),
        folder / "leakage",
        iterations=settings.classifier_iterations,
        seed=seed,
        report=report,
    )


def _page(
    out: Path,
    settings: Settings,
    matrices: Sequence[Sequence[LeakageMatrix]],
    results: Sequence[TrainingResult],
) -> str:
    shared, exclusive = results[0], results[1]
    hours = sum(result.seconds for result in results) / 3600
    changes = [*(file.name for file in settings.extra), *settings.overrides]
    variant = f" Variant: {', '.join(changes)}." if changes else ""
    return "\n".join(
        [
            "# Colored-MNIST",
            "",
            f"{shared.step} iterations of the shared and {exclusive.step} of the exclusive stage "
            f"(the paper: 50,000 and 10,000), {settings.seeds} seeds, {hours:.1f} hours of "
            f"training.{variant}",
            "",
            _machine(Artifact.load(out / "seed-0" / "exclusive" / "artifact-x")),
            "",
            f"Test accuracy in % by the classifier of Table 7 ({settings.classifier_iterations} "
            "steps; the paper: 10,000); ours is the mean over the seeds, "
            "with the least and the greatest.",
            "",
            "| domain | representation | factor | ideal | paper | ours | linear | kNN (5) |",
            "|---|---|---|--:|--:|--:|--:|--:|",
            *_rows(matrices),
            "",
            "L1 distance to the ideal (the paper: S_X 0.0563, E_X 0.0321): "
            + "; ".join(_distances(matrices))
            + ".",
            "",
            *[
                f"Seed {seed}, {stage}: ![terms](seed-{seed}/{stage}/curves.png)\n"
                for seed in range(settings.seeds)
                for stage in _STAGES
            ],
            *[
                f"Seed {seed}, retrieval: ![X](seed-{seed}/leakage/retrieval-x.png) "
                f"![Y](seed-{seed}/leakage/retrieval-y.png)\n"
                for seed in range(settings.seeds)
            ],
            "The configurations are beside the pictures (config.yaml), all readings in "
            f"{out.name}/seed-*/leakage/leakage.md.",
            "",
        ]
    )


def _rows(matrices: Sequence[Sequence[LeakageMatrix]]) -> list[str]:
    rows = []
    for index, domain in enumerate(DOMAINS):
        for one in matrices[0][index].readings:
            if one.probe != MLP:
                continue
            accuracies = {
                probe: _over_seeds(matrices, index, one.representation, one.factor, probe)
                for probe in (MLP, "linear", "kNN (5)")
            }
            published = PAPER_MNIST[domain, one.representation, one.factor]
            cells = [domain.upper(), one.representation, one.factor, f"{100 * one.ideal:.2f}"]
            cells += [f"{published:.2f}", *accuracies.values()]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _over_seeds(
    matrices: Sequence[Sequence[LeakageMatrix]],
    index: int,
    representation: str,
    factor: str,
    probe: str,
) -> str:
    values = [
        100 * one.accuracy
        for of_seed in matrices
        for one in of_seed[index].readings
        if (one.representation, one.factor, one.probe) == (representation, factor, probe)
    ]
    spread = f" ({min(values):.2f} – {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _distances(matrices: Sequence[Sequence[LeakageMatrix]]) -> list[str]:
    lines = []
    for index, domain in enumerate(("X", "Y")):
        for letter, name in (("S", "shared"), ("E", "exclusive")):
            values = [of_seed[index].distance_to_ideal(name) for of_seed in matrices]
            lines.append(f"{letter}_{domain} {np.mean(values):.4f}")
    return lines


def _machine(artifact: Artifact) -> str:
    said = artifact.spec.provenance
    return (
        f"Trained on {said['device']} in {said['precision']}, torch {said['torch']}, commit "
        f"{said['commit']}."
    )
