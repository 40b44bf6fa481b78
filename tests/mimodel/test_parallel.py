"""Two processes with half a batch each are one process with the joint batch."""

import json
import os
import subprocess
import sys
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


def _with_two(*arguments: str) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


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
    data = tmp_path / "digits"
    data.mkdir()
    write_digits(data, monkeypatch)
    files = [CONFIGS / "data/colored-mnist.yaml", CONFIGS / "method/colored-mnist-shared.yaml"]
    settings = [
        "training.iterations=2",
        "training.batch_size=8",
        "training.log_every=1",
        "training.precision=float32",
        "training.threads=1",
        f"data.folder={data}",
    ]
    digests = tmp_path / "digests.json"
    digests.write_text(json.dumps(mnist.FILES))
    arguments = [f"--config={file}" for file in files] + [f"--set={one}" for one in settings]
    program = ("-m", "tests.mimodel.train_on_made_digits", str(digests))
    done = _with_two(*program, *arguments, f"--out={tmp_path / 'two'}")
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


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "digits"
    data.mkdir()
    write_digits(data, monkeypatch)
    monkeypatch.setattr(loop, "processes", lambda: 3)
    files = [CONFIGS / "data/colored-mnist.yaml", CONFIGS / "method/colored-mnist-shared.yaml"]
    config = load_config(files, [f"data.folder={data}"])
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
