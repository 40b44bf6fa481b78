"""A study of the paper from data to report: every arm, every factor, one page, resumable.

    OUT/seed-0/shared       run folder of a stage, one for each that the study has
    OUT/seed-0/exclusive    run folder of stage 2, on stage 1's artifacts
    OUT/seed-0/leakage-*    leakage.json, leakage.md and pictures of each arm's last stage
    OUT/report.md           the published figures and ours side by side

The same command goes on where it was stopped and makes nothing twice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimodel.artifact import run_artifacts
from mimodel.config import RunConfig, load_config
from mimodel.data.fetch import fetch
from mimodel.data.pairs import DOMAINS
from mimodel.errors import ConfigError
from mimodel.leakage import LeakageMatrix, measure, read_matrices
from mimodel.page import Outcome, Outcomes, study_page
from mimodel.sheets import draw_sweep
from mimodel.studies import Arm, Stage, Study
from mimodel.train import Report, train

_OF_THE_STUDY = ("data.folder", "training.seed", "method.shared", "method.encoders")


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

    Data that are missing are fetched or made. `training` gives what follows the run of that name;
    `report` is told what comes next.
    """
    for arm in study.arms:
        for stage in arm.stages:  # what is wrong is said now, and not when hours have passed
            _config(study, stage, settings, data, out / "seed-0", 0)
    fetch(study.data, data, report)
    outcomes: dict[str, list[Outcome]] = {arm.name: [] for arm in study.arms}
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
            outcomes[arm.name].append(Outcome(tuple(runs), tuple(published), matrices, where))
    if study.swept:
        _draw_sweeps(study, outcomes, out)
    changes = [*(file.name for file in settings.extra), *settings.overrides]
    page = out / "report.md"
    page.write_text(study_page(study, out, changes, settings.classifier_iterations, outcomes))
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


def _draw_sweeps(study: Study, outcomes: Outcomes, out: Path) -> None:
    """Figure 5 for each kind of image."""
    by_value = [outcomes[arm.name] for arm in study.arms]
    for index, domain in enumerate(DOMAINS[: len(by_value[0][0].matrices)]):
        readings = [[one.matrices[index].readings for one in seeds] for seeds in by_value]
        draw_sweep(study.swept, readings, out / f"sweep-{domain}.png")
