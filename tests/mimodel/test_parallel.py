"""Two processes with half a batch each are one process with the joint batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mimodel import parallel
from mimodel import train as loop
from mimodel.config import load_config
from mimodel.data import mnist
from mimodel.errors import TrainingError
from mimodel.metrics import read_metrics
from mimodel.parallel import BatchNorm
from tests.mimodel import joint_game
from tests.mimodel.made_digits import write_digits
from tests.mimodel.test_exclusive import make_shared

CONFIGS = Path(__file__).parents[2] / "configs"


_LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _with_two(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*_LAUNCHER, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=_environment(),
    )


def _made_digits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[str]]:
    """Configuration files and settings of a small run; for others see `folder`."""
    data = folder / "digits"
    data.mkdir()
    write_digits(data, monkeypatch)
    (folder / "digests.json").write_text(json.dumps(mnist.FILES))
    files = [CONFIGS / "data/colored-mnist.yaml", CONFIGS / "method/colored-mnist-shared.yaml"]
    settings = [
        "training.batch_size=8",
        "training.log_every=1",
        "training.precision=float32",
        "training.threads=1",
        f"data.folder={data}",
    ]
    return files, settings


def _training(folder: Path, files: list[Path], settings: list[str], out: Path) -> list[str]:
    """What the launcher is given to train as a user would."""
    program = ["-m", "tests.mimodel.train_on_made_digits", str(folder / "digests.json")]
    given = [f"--config={file}" for file in files] + [f"--set={one}" for one in settings]
    return [*program, *given, f"--out={out}"]


@pytest.mark.slow  # four processes import torch: a minute
def test_gradients_and_statistics_are_those_of_the_joint_batch(tmp_path: Path) -> None:
    for seed, name in enumerate(("x", "y")):
        make_shared(tmp_path / name, seed)
    done = _with_two("-m", "tests.mimodel.joint_game", str(tmp_path))
    assert done.returncode == 0, done.stderr
    together = torch.load(tmp_path / "joint.pt", weights_only=True)
    alone = joint_game.play(tmp_path)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-10, rtol=1e-9, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_is_the_run_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop, in float32: figures to 1e-5, weights to a hundredth of Adam's moves."""
    files, settings = _made_digits(tmp_path, monkeypatch)
    settings.append("training.iterations=2")
    done = _with_two(*_training(tmp_path, files, settings, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("curves in") == 1, "one of the processes speaks"
    loop.train(load_config(files, settings), tmp_path / "one", lambda *_: None)
    runs = [tmp_path / "one", tmp_path / "two"]
    one, two = (read_metrics(run / "metrics.jsonl") for run in runs)
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    one_state, two_state = (
        torch.load(run / "checkpoint.pt", weights_only=True)["method"] for run in runs
    )
    # Adam moves a weight by its rate, 1e-4, whatever the gradient's size; where that is nothing but
    # rounding, as for a bias before BatchNorm, the two may move apart, by two moves at most.
    apart = torch.cat([(two_state[name] - one_state[name]).abs().flatten() for name in one_state])
    assert apart.mean() < 1e-7
    assert apart.max() < 4.1e-4
    assert (tmp_path / "two" / "artifact-y" / "model.safetensors").exists()

    refused = _with_two("-m", "mimodel", "leakage", str(tmp_path / "two"), f"--out={tmp_path}")
    assert refused.returncode != 0
    assert "run this as one process" in refused.stderr


@pytest.mark.slow
def test_a_run_of_two_processes_stopped_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, settings = _made_digits(tmp_path, monkeypatch)
    settings.append("training.iterations=12")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    words = _training(tmp_path, files, settings, stopped)
    running = subprocess.Popen([*_LAUNCHER, *words], env=_environment())
    try:
        latest = time.monotonic() + 300
        while not (stopped / "metrics.jsonl").exists() and time.monotonic() < latest:
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)  # which torchrun hands on to both
        running.wait(timeout=120)
    finally:
        running.kill()
        running.wait()
    state = torch.load(stopped / "checkpoint.pt", weights_only=True)
    assert 1 <= state["step"] < 12
    assert not (stopped / "artifact-x").exists()

    for out in (stopped, whole):
        done = _with_two(*_training(tmp_path, files, settings, out))
        assert done.returncode == 0, done.stderr
    resumed, straight = (
        torch.load(out / "checkpoint.pt", weights_only=True)["method"] for out in (stopped, whole)
    )
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name
    assert read_metrics(stopped / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, settings = _made_digits(tmp_path, monkeypatch)
    monkeypatch.setattr(loop, "processes", lambda: 3)
    config = load_config(files, [*settings, "training.batch_size=64"])
    with pytest.raises(TrainingError, match="64 pairs cannot be shared by 3 processes"):
        loop.train(config, tmp_path / "out", lambda *_: None)


def test_joint_batch_norm_is_torchs_on_the_joint_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here two processes hold the same rows, so that their sum is twice one's."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    ours, theirs = BatchNorm(3).double(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        ours.weight.copy_(torch.rand(3))
        theirs.weight.copy_(ours.weight)
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    monkeypatch.setattr(parallel, "summed", lambda values: 2 * values)
    expected = theirs(torch.cat([images, images]))[:4]
    torch.testing.assert_close(ours(images), expected, atol=1e-12, rtol=1e-12)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
    of_its_own = BatchNorm(3).double()
    of_its_own.joint = False
    torch.testing.assert_close(of_its_own(images), nn.BatchNorm2d(3).double()(images))
