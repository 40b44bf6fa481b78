"""A study's page: every figure that it shows can be found in what was planted."""

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mimodel import reproduce as studies
from mimodel.cli import app
from mimodel.config import default_configs, load_config
from mimodel.leakage import LeakageMatrix, write_matrices
from mimodel.page import Outcome, study_page
from mimodel.readouts import MLP, Reading
from mimodel.reproduce import Settings, reproduce
from mimodel.sessions import Session, note_session, read_sessions
from mimodel.studies import STUDIES
from mimodel.train import TrainingResult
from tests.mimodel.made_digits import write_digits

CODE = Session(
    0, "2026-01-01T00:00:00Z", "aaaa", "2 CPU threads (P)", 1, "bfloat16", {"torch": "2"}
)


def _matrix(digit: float, colour: float) -> LeakageMatrix:
    readings = tuple(
        Reading(name, factor, probe, accuracy, accuracy, accuracy, chance, ideal)
        for name, factor, accuracy, chance, ideal in (
            ("shared", "digit", digit, 0.1, 1.0),
            ("shared", "background colour", colour, 1 / 12, 1 / 12),
        )
        for probe in (MLP, "linear", "kNN (1)", "kNN (5)")
    )
    return LeakageMatrix("run-1", 60, 10, 10_000, 0, readings, seconds=90)


def _outcomes(
    out: Path, accuracies: Sequence[tuple[float, float]], sessions: Sequence[Session]
) -> list[Outcome]:
    """One seed for each pair of accuracies of the digit and the colour, with its run folder."""
    outcomes = []
    for seed, (digit, colour) in enumerate(accuracies):
        run, where = out / f"seed-{seed}" / "shared", f"seed-{seed}/leakage-shared"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"training:\n  seed: {seed}\n")
        for session in sessions:
            note_session(run, session)
        matrices = (_matrix(digit, colour),)
        write_matrices(matrices, out / where)
        result = TrainingResult(run, 50, True, {}, 1800.0)
        outcomes.append(Outcome((result,), (50_000,), matrices, where))
    return outcomes


def _page(out: Path, seeds: Sequence[Outcome], study: str = "ablation") -> str:
    chosen = STUDIES[study]
    return study_page(chosen, out, ["x.yaml"], 10_000, {arm.name: seeds for arm in chosen.arms})


def test_seeds_are_a_mean_with_an_interval_and_the_extremes(tmp_path: Path) -> None:
    """Of 90, 92 and 97 %: mean 93, variance 13, and t of two degrees of freedom is 4.302653."""
    page = _page(tmp_path, _outcomes(tmp_path, [(0.90, 0.2), (0.92, 0.3), (0.97, 0.4)], [CODE]))
    half = 4.302653 * np.sqrt(13) / np.sqrt(3)
    assert f"{half:.2f}" == "8.96"
    row = "| baseline | X | shared | digit | 100.00 | 94.48 | 93.00 ± 8.96 (90.00 – 97.00) |"
    assert row in page
    # |0.2 - 1/12| + 0.1, |0.3 - 1/12| + 0.08, |0.4 - 1/12| + 0.03
    assert "baseline, S_X 0.2867 ± 0.1629 (0.2167 – 0.3467)" in page
    assert "interval of Student's t" in page


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    page = _page(tmp_path, _outcomes(tmp_path, [(0.90, 0.2)], [CODE]))
    assert "| baseline | X | shared | background colour | 8.33 | 8.22 | 20.00 | 20.00 |" in page
    assert "±" not in page
    assert "Student" not in page


def test_the_page_says_how_long_it_took_and_by_what(tmp_path: Path) -> None:
    later = Session(**{**asdict(CODE), "step": 20, "commit": "bbbb+changes"})
    again = Session(**{**asdict(CODE), "step": 10})
    page = _page(tmp_path, _outcomes(tmp_path, [(0.9, 0.2), (0.9, 0.2)], [CODE, again, later]))
    assert "1.0 hours of training, 3 minutes of measuring. Variant: x.yaml." in page
    for seed in (0, 1):
        for stretch in ("0 to 20 | aaaa", "20 to 50 | bbbb+changes"):
            row = f"| seed-{seed}/shared | {stretch} | 2 CPU threads (P) | bfloat16 | 2 |"
            assert page.count(row) == 1


def test_what_the_page_points_to_is_in_the_folder_of_the_study(tmp_path: Path) -> None:
    out = tmp_path / "study"
    page = _page(out, _outcomes(out, [(0.9, 0.2)], [CODE]))
    pointed = re.findall(r"\]\(([^)]+)\)", page)
    assert {"seed-0/leakage-shared/leakage.md", "seed-0/shared/curves.png"} <= set(pointed)
    assert (out / "seed-0/leakage-shared/leakage.md").exists()
    assert str(tmp_path) not in page
    assert "```yaml\ntraining:\n  seed: 0\n```" in page


def _stop_at(step: int) -> Callable[[int, int, Mapping[str, float]], None]:
    def report(done: int, total: int, figures: Mapping[str, float]) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.slow
def test_a_sweep_of_two_seeds_that_is_stopped_goes_on_to_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "digits", tmp_path / "study"
    data.mkdir()
    write_digits(data, monkeypatch)
    changes = ["training.batch_size=4", "training.threads=1"]
    settings = Settings(default_configs(), (), changes, 5, 2, 10)
    arguments = (STUDIES["sweep"], data, out, settings)
    assert reproduce(*arguments, training=lambda _: _stop_at(2), report=print) is None
    assert not (out / "report.md").exists()
    page = reproduce(*arguments, training=lambda _: _stop_at(-1), report=print)
    assert page == out / "report.md"
    assert [one.step for one in read_sessions(out / "seed-0" / "shared")] == [0, 2]
    text = page.read_text()
    for seed in (0, 1):
        assert f"| seed-{seed}/exclusive-0.05 | 0 to 1 |" in text
    assert re.search(r"\| lambda 0.05 \| Y \| exclusive \| digit \| 10.00 \| \S+ ± \S+ \(", text)
    pointed = {one for one in re.findall(r"\]\(([^)]+)\)", text) if not one.startswith("http")}
    assert {"sweep-x.png", "sweep-y.png"} <= pointed
    assert all((out / one).exists() for one in pointed)


def test_a_wrong_override_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(studies, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "mnist", "--set", "training.iteration=5"])
    assert result.exit_code == 2
    assert "training.iteration" in result.output
    assert not list(tmp_path.iterdir())


def test_a_study_needs_nothing_but_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def fetch(name: str, folder: Path, _: object) -> None:
        asked.append((name, folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "fetch", fetch)
    monkeypatch.chdir(tmp_path)  # where there are no configurations
    assert CliRunner().invoke(app, ["reproduce", "ablation"]).exit_code == 130
    assert asked == [("colored-mnist", Path("data/colored-mnist"))]


def test_configurations_that_came_are_found_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = default_configs() / "method" / "infomax.yaml"
    assert load_config([file], ["data={name: sentinel2, cube: x}"]).method.name == "infomax-shared"
