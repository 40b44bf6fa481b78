"""A study of the paper from data to report: every arm, every factor, one page, resumable.

    OUT/seed-0/shared       run folder of a stage, one for each that the study has
    OUT/seed-0/exclusive    run folder of stage 2, on stage 1's artifacts
    OUT/seed-0/leakage-*    leakage.json, leakage.md and pictures of each arm's last stage
    OUT/report.md           the published figures and ours side by side

The same command goes on where it was stopped and makes nothing twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimodel.artifact import Artifact, run_artifacts
from mimodel.config import RunConfig, load_config
from mimodel.data.pairs import DOMAINS
from mimodel.errors import ConfigError
from mimodel.leakage import LeakageMatrix, measure, read_matrices
from mimodel.readouts import MLP, Reading
from mimodel.sheets import draw_sweep
from mimodel.studies import Arm, Stage, Study
from mimodel.train import Report, TrainingResult, train

_OF_THE_STUDY = ("data.folder", "training.seed", "method.shared", "method.encoders")
_SHOWN = (MLP, "linear", "kNN (5)")


@dataclass(frozen=True)
class Settings:
    """What may be chosen of a study; the rest is the paper's."""

    configs: Path
    """Folder of the configurations, `configs` of the source tree."""
    extra: Sequence[Path]
    """Configurations that win over the paper's; they make a variant."""
    overrides: Sequence[str]
    """As `key=value` for every stage, `shared:key=value` for one kind of them."""
    iterations: int | None
    """Of the first stage, the others in the paper's proportion; None: the paper's."""
    seeds: int
    classifier_iterations: int


@dataclass(frozen=True)
class _Outcome:
    """One arm under one seed."""

    runs: tuple[TrainingResult, ...]
    published: tuple[int, ...]
    """Iterations of each run in the paper."""
    matrices: tuple[LeakageMatrix, ...]
    folder: str


def reproduce(
    study: Study,
    data: Path,
    out: Path,
    settings: Settings,
    *,
    training: Callable[[str], Report],
    report: Callable[[str], None],
) -> Path | None:
    """Run a study; the report's path, or None where it was interrupted before the end.

    `training` gives what follows the run of that name; `report` is told what comes next.
    """
    for arm in study.arms:
        for stage in arm.stages:  # what is wrong is said now, and not when hours have passed
            _config(study, stage, settings, data, out / "seed-0", 0)
    outcomes: dict[str, list[_Outcome]] = {arm.name: [] for arm in study.arms}
    for seed in range(settings.seeds):
        folder = out / f"seed-{seed}"
        for arm in study.arms:
            runs, published = [], []
            for stage in arm.stages:
                name = f"{folder.name}/{stage.folder}"
                paper = _paper(study, stage, settings.configs, data, folder, seed)
                published.append(paper.training.iterations)
                config = _config(study, stage, settings, data, folder, seed)
                report(f"{name}: {config.training.iterations} iterations")
                runs.append(train(config, folder / stage.folder, training(name)))
                if not runs[-1].finished:
                    return None
            matrices = _matrices(config, folder, arm, settings, report)
            where = f"{folder.name}/{arm.folder}"
            outcomes[arm.name].append(_Outcome(tuple(runs), tuple(published), matrices, where))
    if study.swept:
        readings = [outcomes[arm.name][0].matrices[0].readings for arm in study.arms]
        draw_sweep(study.swept, readings, out / "sweep.png")
    page = out / "report.md"
    page.write_text(_page(study, out, settings, outcomes))
    return page


def _config(
    study: Study, stage: Stage, settings: Settings, data: Path, folder: Path, seed: int
) -> RunConfig:
    """A stage with all that the user has chosen."""
    chosen = []
    if settings.iterations:
        first, own = (
            _paper(study, one, settings.configs, data, folder, seed).training.iterations
            for one in (study.arms[0].stages[0], stage)
        )
        chosen.append(f"training.iterations={max(1, round(settings.iterations * own / first))}")
    chosen += _overrides(study, stage, settings)
    return _paper(study, stage, settings.configs, data, folder, seed, settings.extra, chosen)


def _paper(
    study: Study,
    stage: Stage,
    configs: Path,
    data: Path,
    folder: Path,
    seed: int,
    extra: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> RunConfig:
    """A stage as its configuration files say; what is given beside them wins."""
    files = [
        configs / "data" / f"{study.data}.yaml",
        configs / "method" / f"{stage.method}.yaml",
        *extra,
    ]
    # JSON is YAML, and keeps a path a string whatever it looks like.
    own = [f"data.folder={json.dumps(str(data))}", f"training.seed={seed}"]
    if stage.stands_on:
        own.append(f"method.shared={json.dumps(str(folder / stage.stands_on))}")
    return load_config(files, [*overrides, *stage.overrides, *own])


def _overrides(study: Study, stage: Stage, settings: Settings) -> list[str]:
    """Those of the user's overrides that are meant for a stage."""
    stages = [one for arm in study.arms for one in arm.stages]
    kinds = {one.kind for one in stages}
    chosen = []
    for override in settings.overrides:
        kind, colon, rest = override.partition(":")
        addressed = bool(colon) and kind in kinds
        setting = rest if addressed else override
        key = setting.partition("=")[0].strip()
        varied = {one.partition("=")[0] for of in stages for one in of.overrides}
        if key in _OF_THE_STUDY or key in varied:
            raise ConfigError(f"{key} is the study's own; it cannot be set")
        if not addressed or kind == stage.kind:
            chosen.append(setting)
    return chosen


def _matrices(
    config: RunConfig, folder: Path, arm: Arm, settings: Settings, report: Callable[[str], None]
) -> tuple[LeakageMatrix, ...]:
    """The leakage matrices of an arm, read anew only where the artifacts are others."""
    data, seed = config.benchmark(), config.training.seed
    artifacts = run_artifacts(folder / arm.stages[-1].folder)
    kept = read_matrices(folder / arm.folder)
    wanted = [(artifact.id, settings.classifier_iterations, seed) for artifact in artifacts]
    if [(one.artifact, one.iterations, one.seed) for one in kept] == wanted:
        return kept
    return measure(
        dict(zip(DOMAINS, artifacts, strict=False)),
        lambda domain: data.labelled(domain, seed),
        folder / arm.folder,
        iterations=settings.classifier_iterations,
        seed=seed,
        report=report,
    )


def _page(
    study: Study, out: Path, settings: Settings, outcomes: Mapping[str, Sequence[_Outcome]]
) -> str:
    changes = [*(file.name for file in settings.extra), *settings.overrides]
    variant = f" Variant: {', '.join(changes)}." if changes else ""
    runs = {run.folder: run for arm in outcomes.values() for one in arm for run in one.runs}
    hours = sum(run.seconds for run in runs.values()) / 3600
    sources = list(study.published)
    lines = [
        f"# {study.title}",
        "",
        f"Seeds: {settings.seeds}; {hours:.1f} hours of training.{variant}",
        "",
        "| arm | run | iterations | the paper's |",
        "|---|---|--:|--:|",
        *_iterations(study, outcomes),
        "",
        _machine(next(iter(runs.values())).artifacts[0]),
        "",
        f"Test accuracy in % by the classifier of Table 7 ({settings.classifier_iterations} "
        "steps; the paper: 10,000), a linear model and nearest neighbours; ours is the mean over "
        "the seeds, with the least and the greatest.",
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
        *(["![accuracy over lambda](sweep.png)", ""] if study.swept else []),
        *[f"{run.folder.relative_to(out)}: ![terms]({run.folder.relative_to(out)}/curves.png)\n"
          for run in runs.values()],
        *[line for arm in outcomes.values() for one in arm for line in _pictures(one)],
        "The configurations are beside the curves (config.yaml), all readings in "
        f"{out.name}/seed-*/leakage*/leakage.md.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _iterations(study: Study, outcomes: Mapping[str, Sequence[_Outcome]]) -> list[str]:
    rows = []
    for arm in study.arms:
        first = outcomes[arm.name][0]
        for stage, run, paper in zip(arm.stages, first.runs, first.published, strict=True):
            rows.append(f"| {arm.name} | {stage.folder} | {run.step} | {paper} |")
    return rows


def _rows(study: Study, arm: str, outcomes: Sequence[_Outcome]) -> list[str]:
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
    outcomes: Sequence[_Outcome], index: int, representation: str, factor: str, probe: str
) -> list[Reading]:
    """One reading a seed, where that probe read the representation."""
    return [
        one
        for outcome in outcomes
        for one in outcome.matrices[index].readings
        if (one.representation, one.factor, one.probe) == (representation, factor, probe)
    ]


def _over_seeds(readings: Sequence[Reading]) -> str:
    if not readings:
        return ""
    values = [100 * one.accuracy for one in readings]
    spread = f" ({min(values):.2f} – {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _distances(outcomes: Mapping[str, Sequence[_Outcome]]) -> list[str]:
    lines = []
    for arm, seeds in outcomes.items():
        for index, matrix in enumerate(seeds[0].matrices):
            for letter, name in (("S", "shared"), ("E", "exclusive")):
                if any(one.representation == name for one in matrix.readings):
                    values = [one.matrices[index].distance_to_ideal(name) for one in seeds]
                    lines.append(f"{arm}, {letter}_{DOMAINS[index].upper()} {np.mean(values):.4f}")
    return lines


def _information(arm: str, seeds: Sequence[_Outcome]) -> list[str]:
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


def _pictures(outcome: _Outcome) -> list[str]:
    where = outcome.folder
    return [
        f"{where}: ![retrieval]({where}/retrieval-{domain}.png) "
        f"![learning curves]({where}/learning-{domain}.png)\n"
        for domain in DOMAINS[: len(outcome.matrices)]
    ]


def _machine(artifact: Path) -> str:
    said = Artifact.load(artifact).spec.provenance
    return (
        f"Trained on {said['device']} in {said['precision']}, torch {said['torch']}, commit "
        f"{said['commit']}."
    )
