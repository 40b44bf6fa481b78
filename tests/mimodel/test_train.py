"""The one loop: a resumed run is the run, and what goes wrong is said."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimodel.artifact import Artifact, HeadSpec, Networks
from mimodel.config import EuroSatConfig, RunConfig, SharedStageConfig, TrainingConfig
from mimodel.errors import TrainingError
from mimodel.metrics import read_metrics
from mimodel.train import train
from tests.mimodel.archives import write_archive


def _config(archive: Path, **training: object) -> RunConfig:
    fields = {"iterations": 5, "batch_size": 2, "log_every": 2, "threads": 1, **training}
    return RunConfig(
        data=EuroSatConfig(name="eurosat", archive=archive),
        method=SharedStageConfig(name="infomax-shared"),
        training=TrainingConfig.model_validate(fields),
    )


def _ignore(step: int, total: int, figures: Mapping[str, float]) -> None:
    pass


def _signal_at(stop: int, number: signal.Signals) -> Callable[..., None]:
    def report(step: int, total: int, figures: Mapping[str, float]) -> None:
        if step == stop:
            signal.raise_signal(number)

    return report


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("eurosat") / "images.tar", range(1, 301, 100))


@pytest.fixture(scope="module")
def uninterrupted(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(_config(archive), folder, _ignore).finished
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_and_resumed_equals_an_uninterrupted_one(
    archive: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "whole"
    before = signal.getsignal(signal.SIGINT)  # a background job may have it ignored
    stopped = train(_config(archive), folder, _signal_at(3, number))
    assert (stopped.finished, stopped.step) == (False, 3)
    assert not (folder / "artifact").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert train(_config(archive), folder, _ignore).finished

    assert read_metrics(folder / "metrics.jsonl") == read_metrics(uninterrupted / "metrics.jsonl")
    ours, theirs = (
        torch.load(run / "checkpoint.pt", weights_only=True) for run in (folder, uninterrupted)
    )
    assert ours["step"] == theirs["step"] == 5
    for name, tensor in theirs["method"].items():
        assert torch.equal(ours["method"][name], tensor), name
    assert (
        Artifact.load(folder / "artifact").digest
        == Artifact.load(uninterrupted / "artifact").digest
    )


def test_a_learning_rate_that_decays_is_a_half_cosine_and_survives_a_stop(
    archive: Path, tmp_path: Path
) -> None:
    config = _config(archive, decay="cosine", iterations=4, learning_rate=1e-3)
    train(config, tmp_path / "whole" / "run", _ignore)
    train(config, tmp_path / "stopped" / "run", _signal_at(2, signal.SIGINT))
    train(config, tmp_path / "stopped" / "run", _ignore)
    states = [
        torch.load(tmp_path / name / "run" / "checkpoint.pt", weights_only=True)
        for name in ("whole", "stopped")
    ]
    for name, tensor in states[0]["method"].items():
        assert torch.equal(states[1]["method"][name], tensor), name
    # The fourth of four steps was taken at three quarters of the way.
    (group,) = states[0]["optimisers"][0]["param_groups"]
    assert group["lr"] == pytest.approx(1e-3 * (1 - 2**-0.5) / 2)


def test_a_run_leaves_what_the_docstring_names(uninterrupted: Path) -> None:
    lines = read_metrics(uninterrupted / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        total = line["global"] + line["local"] + line["distance"]
        assert line["total"] == pytest.approx(total)
    assert (uninterrupted / "curves.png").stat().st_size > 1000
    assert list((uninterrupted / "tensorboard").iterdir())
    assert not (uninterrupted / "checkpoint.pt.partial").exists()
    spec = Artifact.load(uninterrupted / "artifact").spec
    assert spec.bands == ("B04", "B03", "B02")
    assert spec.provenance["iterations"] == "5"
    assert spec.provenance["distance"] == "0.1 between representations as they are"


def test_a_finished_run_is_not_trained_further(archive: Path, uninterrupted: Path) -> None:
    before = Artifact.load(uninterrupted / "artifact").digest
    assert train(_config(archive), uninterrupted, _ignore).step == 5
    assert Artifact.load(uninterrupted / "artifact").digest == before


def test_a_finished_run_keeps_the_head_that_a_probe_added(
    archive: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(uninterrupted, folder)
    plain = Artifact.load(folder / "artifact")
    head = HeadSpec(classes=("a", "b"), hidden=4)
    spec = plain.spec.model_copy(update={"heads": {"planted": head}})
    digest = (
        replace(plain, spec=spec, networks=Networks(spec))
        .save(folder / "artifact", "# Probed\n")
        .digest
    )
    result = train(_config(archive), folder, _ignore)
    assert result.finished
    assert result.figures["step"] == 5
    assert Artifact.load(folder / "artifact").digest == digest


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    archive: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(step: int, total: int, figures: Mapping[str, float]) -> None:
        if step == 4:
            raise KilledError

    config, folder = _config(archive, checkpoint_every=3), tmp_path / "whole"
    with pytest.raises(KilledError):
        train(config, folder, kill)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 3
    assert train(config, folder, _ignore).finished
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(uninterrupted / "metrics.jsonl")
    ours, theirs = (Artifact.load(run / "artifact") for run in (folder, uninterrupted))
    assert ours.digest == theirs.digest


def test_a_run_does_not_go_on_with_other_data(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images.tar"
    shutil.copy(archive, copy)
    train(_config(copy), tmp_path / "run", _signal_at(1, signal.SIGINT))
    write_archive(copy, range(1, 401, 100))
    with pytest.raises(TrainingError, match=r"data of .* have changed"):
        train(_config(copy), tmp_path / "run", _ignore)


def test_a_run_folder_that_cannot_be_made_is_an_error(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write the run folder"):
        train(_config(archive), tmp_path / "file" / "run", _ignore)


def test_another_seed_is_another_run(archive: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(_config(archive, seed=1, iterations=1), tmp_path / "other", _ignore)
    other = Artifact.load(tmp_path / "other" / "artifact")
    assert other.digest != Artifact.load(uninterrupted / "artifact").digest


def test_a_folder_keeps_to_its_configuration(archive: Path, uninterrupted: Path) -> None:
    with pytest.raises(TrainingError, match="another configuration"):
        train(_config(archive, learning_rate=1e-3), uninterrupted, _ignore)


def test_time_that_is_up_ends_a_run_with_an_artifact(archive: Path, tmp_path: Path) -> None:
    result = train(_config(archive, minutes=1e-9), tmp_path / "short", _ignore)
    assert result.finished
    assert result.step == 1
    assert Artifact.load(tmp_path / "short" / "artifact").spec.provenance["iterations"] == "1"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_term(
    archive: Path, tmp_path: Path
) -> None:
    config = _config(archive, learning_rate=1e30, precision="float32")
    with pytest.raises(
        TrainingError, match=r"(term|gradient of) '\w+' is not finite at step [23];"
    ):
        train(config, tmp_path / "wild", _ignore)


def test_a_broken_checkpoint_is_an_error_that_says_what_to_do(
    archive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(_config(archive), folder, _signal_at(1, signal.SIGINT))
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="remove it"):
        train(_config(archive), folder, _ignore)


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 2}) + '\n{"step": 4, "glo')
    assert read_metrics(file) == [{"step": 2}]


@pytest.mark.slow
def test_compiled_encoders_are_the_same_encoders(
    archive: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    if shutil.which("g++") is None:  # a fresh machine needs none for anything else
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    config = _config(archive, compile=True, precision="float32")
    plain = _config(archive, precision="float32")
    for name, one in (("compiled", config), ("plain", plain)):
        assert train(one, tmp_path / name, _ignore).finished
    compiled, eager = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("compiled", "plain"))
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert (
        Artifact.load(tmp_path / "compiled" / "artifact").spec.encoder
        == Artifact.load(uninterrupted / "artifact").spec.encoder
    )
