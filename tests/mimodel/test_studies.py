"""The experiments' constants and published figures, typed from the paper and its supplement."""

from inspect import signature
from pathlib import Path
from typing import NamedTuple

import pytest

from mimodel import cli
from mimodel.config import RunConfig, load_config
from mimodel.data.pairs import Domain
from mimodel.studies import STUDIES, Stage, Study

CONFIGS = Path(__file__).parents[2] / "configs"


class Constants(NamedTuple):
    """What the supplement says of a stage."""

    iterations: int
    batch: int
    alpha: float
    beta: float
    third: float
    """gamma of the shared stage, lambda_adv of the exclusive one."""
    size: int
    encoders: int = 1


@pytest.mark.parametrize(
    ("data", "method", "said"),
    [
        ("colored-mnist", "colored-mnist-shared", Constants(50_000, 64, 0.5, 1, 0.1, 64, 2)),  # 1.1
        ("shapes3d", "shapes3d-shared", Constants(50_000, 64, 0.5, 1, 0.1, 64)),  # 1.2
        ("iam", "words-shared", Constants(4150, 64, 0.5, 1, 0.01, 64)),  # 1.3
        ("sentinel2", "infomax", Constants(200_000, 64, 0.5, 1, 0.1, 64)),  # 1.4
        ("sentinel2", "pixels", Constants(200_000, 64, 0.5, 1, 0.1, 64)),  # as 1.4
    ],
)
def test_the_shared_stages_are_the_supplements(data: str, method: str, said: Constants) -> None:
    config = _config(data, method)
    assert _of_training(config) == (said.iterations, said.batch)
    assert (
        config.method.model_dump().items()
        >= {
            "name": "infomax-shared",
            "alpha": said.alpha,
            "beta": said.beta,
            "gamma": said.third,
            "representation": said.size,
            "encoders": said.encoders,
            "switched": True,
            "distance_inputs": "as they are",
        }.items()
    )


@pytest.mark.parametrize(
    ("data", "method", "said"),
    [
        ("colored-mnist", "colored-mnist-exclusive", Constants(10_000, 64, 0.5, 1, 0.05, 8)),  # 1.1
        ("shapes3d", "shapes3d-exclusive", Constants(10_000, 32, 0.5, 1, 0.01, 64)),  # 1.2
        ("iam", "words-exclusive", Constants(4150, 64, 0.5, 1, 0.01, 64)),  # 1.3
        ("sentinel2", "infomax-exclusive", Constants(40_000, 64, 0.5, 1, 0.01, 64)),  # ours
    ],
)
def test_the_exclusive_stages_are_the_supplements(data: str, method: str, said: Constants) -> None:
    config = _config(data, method, "method.shared=run")
    assert _of_training(config) == (said.iterations, said.batch)
    assert (
        config.method.model_dump().items()
        >= {
            "name": "infomax-exclusive",
            "alpha": said.alpha,
            "beta": said.beta,
            "adversarial": said.third,
            "representation": said.size,
            "form": "non-saturating",
            "discriminator_inputs": "as they are",
            "discriminator_steps": 1,
            "discriminator_rate": None,
        }.items()
    )


def test_the_autoencoder_is_the_supplements() -> None:
    config = _config("iam", "words-vae")
    assert _of_training(config) == (50_000, 64)
    assert config.method.model_dump() == {
        "name": "vae",
        "representation": 128,
        "likelihood": "bernoulli",
    }


@pytest.mark.parametrize(
    ("study", "data", "methods"),
    [
        ("mnist", "colored-mnist", ("colored-mnist-shared", "colored-mnist-exclusive")),
        ("shapes3d", "shapes3d", ("shapes3d-shared", "shapes3d-exclusive")),
        ("iam", "iam", ("words-shared", "words-exclusive", "words-vae")),
        ("writer-digits", "writer-digits", ("words-shared", "words-exclusive", "words-vae")),
        ("font-words", "font-words", ("words-shared", "words-exclusive", "words-vae")),
    ],
)
def test_the_experiments_are_run_as_their_configurations_say(
    study: str, data: str, methods: tuple[str, ...]
) -> None:
    found = STUDIES[study]
    stages = [stage for arm in found.arms for stage in arm.stages]
    assert found.data == data
    assert tuple(stage.method for stage in stages) == methods
    assert not any(stage.overrides for stage in stages)


@pytest.mark.parametrize(
    ("command", "option"),
    [("probe", "iterations"), ("leakage", "iterations"), ("reproduce", "classifier_iterations")],
)
def test_a_classifier_takes_the_supplements_steps(command: str, option: str) -> None:
    assert signature(getattr(cli, command)).parameters[option].default == 10_000


def test_the_ablations_and_the_sweep_change_one_thing_each() -> None:
    ablation, sweep = STUDIES["ablation"], STUDIES["sweep"]
    assert {arm.name: _changed(ablation, arm.stages[-1]) for arm in ablation.arms} == {
        "baseline": {},
        "non-SSR": {"switched": False},
        "gamma 0": {"gamma": 0},
        "alpha 0": {"alpha": 0},
        "beta 0": {"beta": 0},
    }
    assert sweep.swept == (0, 0.005, 0.01, 0.025, 0.05)  # figure 5
    assert [_changed(sweep, arm.stages[-1]).get("adversarial", 0.05) for arm in sweep.arms] == [
        0, 0.005, 0.01, 0.025, 0.05,
    ]  # fmt: skip
    assert not any(_changed(sweep, arm.stages[0]) for arm in sweep.arms)


def test_the_variants_change_what_the_design_notes_say() -> None:
    changed = {
        name: [_changed(STUDIES[name], stage) for stage in STUDIES[name].arms[0].stages]
        for name in ("mnist-standardised", "shapes3d-standardised")
    }
    assert changed == {
        "mnist-standardised": [
            {"distance_inputs": "standardised", "gamma": 3},
            {"independence": 300, "levels": 3, "levels_from": 0.5},
        ],
        "shapes3d-standardised": [
            {"distance_inputs": "standardised", "gamma": 1},
            {"independence": 1000, "variance_kept": 0.997},
        ],
    }


OURS = "both stages"
ABLATED = ("background colour", "digit")
SHAPES = ("floor hue", "wall hue", "object hue", "scale", "shape", "orientation")
REPLICATED = ("floor hue", "wall hue", "object hue", "shape", "scale", "orientation")


class Row(NamedTuple):
    """A line of a table, its columns in the table's order; distances as shares, or not given."""

    arm: str
    domain: Domain
    representation: str
    factors: tuple[str, ...]
    accuracies: tuple[float, ...]
    ideal: tuple[float, ...] = ()
    distance: float | None = None


TABLES: dict[tuple[str, str], list[Row]] = {
    ("mnist", "paper"): [
        # Table 1
        Row(OURS, "x", "shared", ABLATED, (8.22, 94.48), (8.33, 100), 0.0563),
        Row(OURS, "x", "exclusive", ABLATED, (99.99, 13.20), (100, 10), 0.0321),
        # Table 2
        Row(OURS, "y", "shared", ("digit colour", "digit"), (8.83, 94.27), (8.33, 100), 0.0623),
        Row(OURS, "y", "exclusive", ("digit colour", "digit"), (99.92, 13.75), (100, 10), 0.0383),
    ],
    ("shapes3d", "paper"): [  # Table 3
        Row(
            OURS, "x", "shared", SHAPES,
            (9.96, 10.08, 9.95, 99.99, 99.99, 99.99), (10, 10, 10, 100, 100, 100), 0.0020,
        ),
        Row(
            OURS, "x", "exclusive", SHAPES,
            (95.10, 99.79, 96.17, 17.25, 30.73, 6.79), (100, 100, 100, 12.5, 25, 6.66), 0.1955,
        ),
    ],
    ("shapes3d", "Busellato"): [  # its Table VI
        Row(OURS, "x", "shared", REPLICATED, (10.28, 10.39, 10.27, 99.99, 99.44, 97.78)),
        Row(OURS, "x", "exclusive", REPLICATED, (77.74, 95.52, 81.19, 33.78, 16.98, 7.92)),
    ],
    ("iam", "paper"): [  # Table 4; the distance to the ideal is that of Table 7
        Row(OURS, "x", "shared", ("writer", "word"), (61.64, 9.94), (100, 1), 0.4730),
        Row(OURS, "x", "exclusive", ("writer", "word"), (10.80, 20.88)),
        Row("VAE", "x", "latent", ("writer", "word"), (13.77, 20.30)),
    ],
    ("ablation", "paper"): [  # Table 6
        Row("baseline", "x", "shared", ABLATED, (8.22, 94.48), (8.33, 100), 0.0563),
        Row("non-SSR", "x", "shared", ABLATED, (99.99, 89.57), (8.33, 100), 1.0209),
        Row("gamma 0", "x", "shared", ABLATED, (8.49, 92.36), (8.33, 100), 0.0780),
        Row("alpha 0", "x", "shared", ABLATED, (11.11, 94.83), (8.33, 100), 0.0795),
        Row("beta 0", "x", "shared", ABLATED, (8.51, 80.59), (8.33, 100), 0.1958),
    ],
}  # fmt: skip


@pytest.mark.parametrize("study", sorted({study for study, _ in TABLES}))
def test_the_published_figures_are_those_of_the_tables(study: str) -> None:
    typed = {
        source: {
            (row.arm, row.domain, row.representation, factor): accuracy
            for row in rows
            for factor, accuracy in zip(row.factors, row.accuracies, strict=True)
        }
        for (of, source), rows in TABLES.items()
        if of == study
    }
    assert STUDIES[study].published == typed


def test_only_what_was_published_is_said_to_be() -> None:
    told = {name for name, study in STUDIES.items() if study.published}
    variants = {"mnist-standardised": "mnist", "shapes3d-standardised": "shapes3d"}
    assert told == {"mnist", "shapes3d", "iam", "ablation", *variants}
    for variant, faithful in variants.items():
        assert STUDIES[variant].published == STUDIES[faithful].published


@pytest.mark.parametrize(
    "row", [row for rows in TABLES.values() for row in rows if row.distance is not None]
)
def test_the_typed_figures_are_as_far_from_the_ideal_as_the_paper_says(row: Row) -> None:
    """Which a wrong digit or two columns that changed places would not be."""
    apart = sum(abs(one - other) for one, other in zip(row.accuracies, row.ideal, strict=True))
    assert row.distance is not None
    assert apart / 100 == pytest.approx(row.distance, abs=2e-4)


def _config(data: str, method: str, *more: str) -> RunConfig:
    place = "data.cube=x" if data == "sentinel2" else "data.folder=x"
    files = [CONFIGS / "data" / f"{data}.yaml", CONFIGS / "method" / f"{method}.yaml"]
    return load_config(files, [place, *more])


def _of_training(config: RunConfig) -> tuple[int, int]:
    """Iterations and batch; what all experiments have in common is asserted."""
    training = config.training
    assert (training.learning_rate, training.betas) == (1e-4, (0.9, 0.999))
    assert (training.decay, training.minutes) == ("none", None)
    return training.iterations, training.batch_size


def _changed(study: Study, stage: Stage) -> dict[str, object]:
    """Those settings of a stage's method that are not its configuration's."""
    more = ["method.shared=run"] if stage.stands_on else []
    plain = _config(study.data, stage.method, *more)
    own = _config(study.data, stage.method, *more, *stage.overrides)
    assert own.training == plain.training
    before = plain.method.model_dump()
    return {key: value for key, value in own.method.model_dump().items() if value != before[key]}
