"""The one loop: a resumed run is the run, and what goes wrong is said."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Generator, Tensor

from mimodel import sessions
from mimodel.artifact import Artifact, HeadSpec, Networks
from mimodel.config import RunConfig, TrainingConfig, dump_config
from mimodel.data.configs import EuroSatConfig
from mimodel.data.pairs import PairBatch
from mimodel.errors import TrainingError
from mimodel.methods.base import Player
from mimodel.methods.configs import SharedStageConfig
from mimodel.methods.shared import SharedStage
from mimodel.metrics import read_metrics
from mimodel.networks import Encoder
from mimodel.parallel import BatchNorm
from mimodel.sessions import read_sessions
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


def _beside_the_objective(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[SharedStage, dict[str, Tensor]], object]
) -> None:
    """`look` is called in the middle of each step, and may add to its terms."""
    own = SharedStage.objective

    def objective(
        method: SharedStage, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        terms = own(method, player, batch, generator)
        look(method, terms)
        return terms

    monkeypatch.setattr(SharedStage, "objective", objective)


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
    with pytest.raises(TrainingError, match=r"'\w+' is not finite at step [23];"):
        train(config, tmp_path / "wild", _ignore)


def test_a_gradient_that_is_not_finite_ends_the_run_where_every_term_is(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steep(method: SharedStage, terms: dict[str, Tensor]) -> None:
        terms["steep"] = (0 * method.x.encoder.output.weight).sum().sqrt()  # 0, of gradient NaN

    _beside_the_objective(monkeypatch, steep)
    with pytest.raises(TrainingError, match="the gradient of 'shared' is not finite at step 1;"):
        train(_config(archive, iterations=1), tmp_path / "run", _ignore)


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_algorithms_are_used_where_they_are_asked_for(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    seen: list[bool] = []
    _beside_the_objective(
        monkeypatch, lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    train(_config(archive, iterations=1, deterministic=wanted), tmp_path / "run", _ignore)
    assert seen == [wanted]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_are_in_the_precision_that_the_artifact_names(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: set[torch.dtype] = set()

    def look(method: SharedStage, _: object) -> None:
        seen.add(method.x.encoder(torch.zeros(2, 3, 64, 64)).feature_map.dtype)

    _beside_the_objective(monkeypatch, look)
    folder = tmp_path / "run"
    train(_config(archive, iterations=1, precision=precision), folder, _ignore)
    assert seen == {getattr(torch, precision)}
    assert Artifact.load(folder / "artifact").spec.provenance["precision"] == precision


@pytest.mark.parametrize("mode", ["joint", "process"])
def test_batch_norm_is_of_the_batch_that_the_settings_name(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    seen: set[bool] = set()

    def look(method: SharedStage, _: object) -> None:
        seen.update(each.joint for each in method.modules() if isinstance(each, BatchNorm))

    _beside_the_objective(monkeypatch, look)
    train(_config(archive, iterations=1, batch_norm=mode), tmp_path / "run", _ignore)
    assert seen == {mode == "joint"}


def test_tensorboard_has_the_figures_of_the_metrics(uninterrupted: Path) -> None:
    events = EventAccumulator(str(uninterrupted / "tensorboard"))
    events.Reload()
    for line in read_metrics(uninterrupted / "metrics.jsonl"):
        for name in ("global", "local", "distance", "total"):
            drawn = {event.step: event.value for event in events.Scalars(name)}
            assert drawn[int(line["step"])] == pytest.approx(line[name], rel=1e-6)


@pytest.mark.parametrize(
    ("error", "compiled", "says"),
    [
        (torch.OutOfMemoryError("of 80 GiB"), False, r"no memory for step 1 .* of 2 pairs; lower"),
        (RuntimeError("no C++\nfound"), True, r"compiled encoders \(no C\+\+\); set training.comp"),
    ],
)
def test_what_a_device_or_a_compiler_cannot_do_is_said(
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    compiled: bool,
    says: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Encoder, "compile", lambda _: None)
    _beside_the_objective(monkeypatch, fail)
    with pytest.raises(TrainingError, match=says):
        train(_config(archive, compile=compiled), tmp_path / "run", _ignore)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    archive: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = _config(archive, checkpoint_every=2), tmp_path / "whole"
    save = torch.save

    def fill_the_disk(state: dict[str, Any], file: IO[bytes]) -> None:
        if state["step"] == 4:
            file.write(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file\nin C++")
        save(state, file)

    with monkeypatch.context() as full:
        full.setattr(torch, "save", fill_the_disk)
        with pytest.raises(TrainingError, match=r"failed writing file\); the checkpoint before is"):
            train(config, folder, _ignore)
    assert [file.name for file in folder.glob("*checkpoint*")] == ["checkpoint.pt"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    assert train(config, folder, _ignore).finished
    ours, theirs = (Artifact.load(run / "artifact") for run in (folder, uninterrupted))
    assert ours.digest == theirs.digest


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(archive: Path, tmp_path: Path) -> None:
    config = _config(archive, iterations=60, checkpoint_every=1, log_every=5)
    assert train(config, tmp_path / "whole" / "run", _ignore).finished
    folder = tmp_path / "killed" / "run"
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "mimodel", "train", f"--config={file}", f"--out={folder}"]
    moments = random.Random(0)
    for started in range(1, 5):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while len(read_sessions(folder)) < started and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1))
            process.kill()
    assert len(read_sessions(folder)) == 4
    assert train(config, folder, _ignore).finished
    ours, theirs = (tmp_path / run / "run" for run in ("killed", "whole"))
    for name in ("metrics.jsonl", "config.yaml"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    weights = [Artifact.load(run / "artifact").networks.state_dict() for run in (ours, theirs)]
    for name, tensor in weights[1].items():
        assert torch.equal(weights[0][name], tensor), name


def test_a_run_says_which_code_and_which_machine_each_part_of_it_had(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = _config(archive), tmp_path / "run"
    monkeypatch.setattr(sessions, "_commit", lambda: "aaaa")
    train(config, folder, _signal_at(3, signal.SIGINT))
    assert [(one.step, one.commit) for one in read_sessions(folder)] == [(0, "aaaa")]
    with (folder / "sessions.jsonl").open("a") as file:
        file.write('{"step": 3, "sta')  # torn by a kill
        file.write("\n")
    monkeypatch.setattr(sessions, "_commit", lambda: "bbbb+changes")
    train(config, folder, _ignore)
    assert [(one.step, one.commit) for one in read_sessions(folder)] == [
        (0, "aaaa"),
        (3, "bbbb+changes"),
    ]
    said = Artifact.load(folder / "artifact").spec.provenance
    assert said["commit"] == "aaaa, bbbb+changes"
    assert said["device"].startswith("1 CPU threads (")
    assert said["processes"] == "1"


def test_a_commit_is_marked_where_its_files_are_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(sessions, "__file__", str(tmp_path / "sessions.py"))
    started = partial(sessions.Session.now, 0, torch.device("cpu"), torch.float32)
    assert started().commit == "unknown"
    git("init", "-q")
    (tmp_path / "sessions.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    assert started().commit == git("rev-parse", "HEAD")
    (tmp_path / "sessions.py").write_text("changed")
    assert started().commit == git("rev-parse", "HEAD") + "+changes"


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
