"""The one training loop: a game of players, resumable, the same for every method and data set.

A run folder holds

    config.yaml      the resolved configuration
    sessions.jsonl   one line for each start: the step, the commit, the machine
    metrics.jsonl    one line every `log_every` steps: mean terms since the line before
    tensorboard/     the same figures
    checkpoint.pt    for resuming alone
    curves.png       the terms over the steps
    artifact/        what the world gets

The same command continues a run that was stopped. Batches, negatives and initial weights are
functions of seed and step, so a resumed run equals an uninterrupted one.
"""

import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, final

import numpy as np
import torch
from torch import Generator, Tensor

from mimodel.artifact import ArtifactSpec, save_artifact
from mimodel.card import model_card
from mimodel.config import RunConfig, TrainingConfig, dump_config, load_config
from mimodel.data.pairs import PairBatch, PairSource, prefetched
from mimodel.errors import TrainingError, first_line
from mimodel.methods.base import Method, Player
from mimodel.methods.configs import ExclusiveStageConfig
from mimodel.metrics import MetricsFile, draw_curves, read_metrics
from mimodel.networks import Encoder, inference_dtype
from mimodel.parallel import (
    BatchNorm,
    agreed,
    average_gradients,
    is_first,
    mean_over_processes,
    of_first,
    process_group,
    processes,
    rows,
    wait_for_all,
)
from mimodel.sessions import Session, note_session, provenance, read_sessions
from mimodel.whole import write_whole

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with (steps done, steps in all, latest figures)."""


@dataclass(frozen=True)
class TrainingResult:
    """Where a run stands when `train` returns."""

    folder: Path
    step: int
    finished: bool
    figures: Mapping[str, float]
    seconds: float
    """Time spent in the loop over all sessions of the run."""
    artifacts: Sequence[Path] = ()
    """What a finished run has made, one for each kind of image."""


def train(config: RunConfig, folder: Path, report: Report) -> TrainingResult:
    """Train or continue the run in `folder` and, at its end, write its artifact.

    SIGINT and SIGTERM stop it after the step in hand, with a checkpoint; `finished` is then False.
    Started by torchrun, the processes share each batch; the first of them writes, into a folder
    that all of them see.
    """
    device = _device(config.training)
    with process_group(device), _arithmetic(config.training):
        return _train(config, folder, report, device)


def _train(config: RunConfig, folder: Path, report: Report, device: torch.device) -> TrainingResult:
    _check_folder(config, folder)
    settings = config.training
    if settings.batch_size % processes():
        raise TrainingError(
            f"a batch of {settings.batch_size} pairs cannot be shared by {processes()} processes "
            "alike; choose a training.batch_size that they divide"
        )
    source = config.open(device)
    if isinstance(config.method, ExclusiveStageConfig) and config.is_benchmark:
        config.method.check_data(source.description["data_digest"])
    run = _Run.start(config, source, device)
    wait_for_all()
    # Only now: a wrong path in the configuration leaves no folder that belongs to it.
    _claim_for_all(config, folder)
    run.resume(folder)
    if agreed((run.step != of_first(run.step),))[0]:
        raise TrainingError(
            f"the processes do not see one and the same {folder}; choose an --out that they share"
        )
    artifacts = tuple(folder / name for name in run.method.learnt())
    if run.over and all(artifact.exists() for artifact in artifacts):
        # A head that a probe has put into the artifact would be lost.
        latest = (read_metrics(folder / "metrics.jsonl") or [{}])[-1]
        return TrainingResult(folder, run.step, True, latest, run.seconds, artifacts)
    if is_first():
        note_session(folder, Session.now(run.step, device, run.autocast))
    wait_for_all()
    figures, finished = _loop(run, source, folder, report)
    if not finished:
        return TrainingResult(folder, run.step, False, figures, run.seconds)
    if is_first():
        draw_curves(folder / "metrics.jsonl", folder / "curves.png")
        _write_artifacts(config, source, run, folder)
    wait_for_all()
    return TrainingResult(folder, run.step, True, figures, run.seconds, artifacts)


def _loop(
    run: "_Run", source: PairSource, folder: Path, report: Report
) -> tuple[Mapping[str, float], bool]:
    """Steps until the run is over or a signal stops it; the latest figures, and which it was."""
    settings = run.settings
    steps = range(run.step, run.step if run.over else settings.iterations)
    own = rows(settings.batch_size)
    with MetricsFile(folder, run.step, writes=is_first()) as metrics, _stop_signals() as stop:
        for batch in prefetched(source, steps, settings.batch_size, own, readers=settings.readers):
            with _in_words(run):
                run.advance(batch)
            over = run.over  # by the first process's clock, so the same in all
            if run.step % settings.log_every == 0 or over:
                metrics.write(run.step, run.figures())
            report(run.step, settings.iterations, metrics.latest)
            (stopped,) = agreed((stop.requested,))
            if stopped or over or run.step % settings.checkpoint_every == 0:
                run.save(folder)
            if over or stopped:
                return metrics.latest, over
        return metrics.latest, True


@contextmanager
def _in_words(run: "_Run") -> Iterator[None]:
    """What a device or a compiler cannot do, as a `TrainingError` that says what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{run.device} has no memory for step {run.step + 1} with batches of "
            f"{run.settings.batch_size} pairs; lower training.batch_size, or share it among "
            "several devices with torchrun"
        ) from error
    except RuntimeError as error:
        if not run.settings.compile:
            raise
        raise TrainingError(
            f"step {run.step + 1} failed with compiled encoders ({first_line(error)}); set "
            "training.compile=false"
        ) from error


@final
@dataclass
class _Run:
    """Everything that changes from step to step."""

    settings: TrainingConfig
    method: Method
    optimisers: Sequence[torch.optim.Adam]
    device: torch.device
    autocast: torch.dtype
    data: Mapping[str, str]
    """What the pairs are and what the method stands on; a run does not go on with others."""
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    broken: dict[str, Tensor] = field(default_factory=dict)
    """The first step at which something was not finite; infinite where all was."""
    summed: int = 0

    @classmethod
    def start(cls, config: RunConfig, source: PairSource, device: torch.device) -> "_Run":
        settings = config.training
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            method = config.method.build(len(source.normalisation.bands), source.image_size)
        method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in method.modules():
            if isinstance(module, BatchNorm):
                module.joint = settings.batch_norm == "joint"
            if isinstance(module, Encoder) and settings.compile:
                module.compile()
        optimisers = [
            torch.optim.Adam(
                player.parameters,
                lr=player.learning_rate or settings.learning_rate,
                betas=settings.betas,
                fused=True,
            )
            for player in method.players
        ]
        precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        dtype = precision.get(settings.precision) or inference_dtype(device)
        data = {**source.description, **method.description}
        return cls(settings, method.train(), optimisers, device, dtype, data)

    def advance(self, batch: PairBatch) -> None:
        """One step of every player."""
        started = time.perf_counter()
        self._set_learning_rates()
        self.method.advanced(self.done)
        batch = PairBatch(self._place(batch.x), self._place(batch.y))
        generator = self._generator()
        for player, optimiser in zip(self.method.players, self.optimisers, strict=True):
            for _ in range(player.steps):
                terms = self._terms(player, batch, generator)
                optimiser.zero_grad()
                torch.stack(list(terms.values())).sum().backward(inputs=list(player.parameters))
                average_gradients(player.parameters)
                self._guard(terms, player)
                optimiser.step()
            for name, term in terms.items():
                # Left on the device: fetching a number would wait for the step to end.
                self.sums[name] = self.sums.get(name, 0) + term.detach()
        self.step += 1
        self.summed += 1
        # One clock, since the learning rate may follow it.
        self.seconds = of_first(self.seconds + time.perf_counter() - started)

    def _guard(self, terms: Mapping[str, Tensor], player: Player) -> None:
        """Note the first step at which a term or a gradient is not finite; read with the figures,
        because to look at each step would wait for it to end."""
        gradients = [p.grad for p in player.parameters if p.grad is not None]
        watched = {
            **{f"the term {name!r}": term for name, term in terms.items()},
            f"the gradient of {player.name!r}": torch.nn.utils.get_total_norm(gradients),
        }
        for name, value in watched.items():
            before = self.broken.get(name, value.new_full((), math.inf))
            here = torch.where(torch.isfinite(value.detach()), math.inf, float(self.step + 1))
            self.broken[name] = torch.minimum(before, here)

    @property
    def done(self) -> float:
        """Share of the run that is behind it, by iterations or by time; 1 or more is the end."""
        by_time = self.seconds / (self.settings.minutes * 60) if self.settings.minutes else 0.0
        return max(self.step / self.settings.iterations, by_time)

    @property
    def over(self) -> bool:
        return self.done >= 1

    def figures(self) -> dict[str, float]:
        """Mean of each term since the last call; "total" is what the first player minimises."""
        means = self._means()
        self.sums, self.summed = {}, 0
        others = {player.name for player in self.method.players[1:]}
        return {**means, "total": sum(v for name, v in means.items() if name not in others)}

    def _means(self) -> dict[str, float]:
        """Means of the terms since the last figures; what is not finite ends the run."""
        first = {name: float(step) for name, step in self.broken.items()}
        earliest = min(first, key=lambda name: first[name], default=None)
        if earliest is not None and math.isfinite(first[earliest]):
            raise TrainingError(
                f"{earliest} is not finite at step {first[earliest]:.0f}; the checkpoint before is "
                "kept. Try precision float32 or a lower learning rate"
            )
        return {
            name: float(mean_over_processes(total)) / self.summed
            for name, total in self.sums.items()
        }

    def resume(self, folder: Path) -> None:
        """Take over the state of the folder's checkpoint, if it has one."""
        path = folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self._check_data(state["data"], folder)
            self.method.load_state_dict(state["method"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.PickleError) as error:
            raise TrainingError(
                f"cannot continue from {path}, which is damaged; remove it to start the run anew"
            ) from error
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums, self.summed = state["sums"], state["summed"]

    def _check_data(self, data: Mapping[str, str], folder: Path) -> None:
        changed = [key for key in {**data, **self.data} if data.get(key) != self.data.get(key)]
        if changed:
            said = "; ".join(f"{key}: {data.get(key)}, now {self.data.get(key)}" for key in changed)
            raise TrainingError(
                f"the data of {folder}, the shared encoder under it, or what its method does have "
                f"changed since its checkpoint ({said}); bring them back, or choose another --out"
            )

    def save(self, folder: Path) -> None:
        """Write the checkpoint; a kill in the middle, a full disk, or a term that is not finite
        leaves the one before."""
        self._means()
        sums = {name: mean_over_processes(total) for name, total in self.sums.items()}
        if not is_first():
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "data": self.data,
            "sums": sums,
            "summed": self.summed,
            "method": self.method.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        path = folder / "checkpoint.pt"
        try:
            write_whole(path, lambda file: torch.save(state, file))
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own
            raise TrainingError(
                f"cannot write {path} ({first_line(error)}); the checkpoint before is kept, so "
                "make room and run the same command again"
            ) from error

    def _set_learning_rates(self) -> None:
        factor = 1.0
        if self.settings.decay == "cosine":
            factor = (1 + math.cos(math.pi * self.done)) / 2
        for player, optimiser in zip(self.method.players, self.optimisers, strict=True):
            rate = player.learning_rate or self.settings.learning_rate
            for group in optimiser.param_groups:
                group["lr"] = rate * factor

    def _generator(self) -> Generator:
        """All that is random in a step, as a function of seed and step."""
        seed = np.random.SeedSequence([self.settings.seed, 3, self.step]).generate_state(1)
        return Generator().manual_seed(int(seed[0]))

    def _terms(self, player: Player, batch: PairBatch, generator: Generator) -> dict[str, Tensor]:
        enabled = self.autocast is not torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.method.objective(player, batch, generator)

    def _place(self, images: Tensor) -> Tensor:
        return images.to(self.device).contiguous(memory_format=torch.channels_last)


def _check_folder(config: RunConfig, folder: Path) -> None:
    """Refuse a folder that belongs to another configuration."""
    path = folder / "config.yaml"
    if path.exists() and load_config([path]) != config:
        raise TrainingError(
            f"{folder} holds a run of another configuration ({path}); choose another --out, or "
            "remove the folder to start anew"
        )


def _claim_for_all(config: RunConfig, folder: Path) -> None:
    """The first process claims; where it cannot, none goes on to wait for it."""
    failure: TrainingError | None = None
    if is_first():
        try:
            _claim(config, folder)
        except TrainingError as error:
            failure = error
    if agreed((failure is not None,))[0]:
        raise failure or TrainingError(f"the first process cannot write the run folder {folder}")


def _claim(config: RunConfig, folder: Path) -> None:
    """Make the run folder, with its configuration in it; that of a run that goes on stays."""
    path = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, lambda file: file.write(dump_config(config).encode()))
    except OSError as error:
        raise TrainingError(f"cannot write the run folder {folder}: {error}") from error


@contextmanager
def _arithmetic(settings: TrainingConfig) -> Iterator[None]:
    """Threads and algorithms as the settings say; the algorithms as before, afterwards."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    before = torch.are_deterministic_algorithms_enabled()
    if before or not settings.deterministic:
        # nothing to switch: torch imports its compiler, seconds of work, at each switching
        yield
        return
    # cuBLAS is deterministic only with a workspace of a fixed size, chosen before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _device(settings: TrainingConfig) -> torch.device:
    wanted = settings.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("training.device is cuda, but no GPU is visible; use cpu or auto")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= there:
        raise TrainingError(
            f"process {rank} of this machine has no GPU, which has {there}; start as many "
            "processes as GPUs, or set training.device=cpu"
        )
    return torch.device("cuda", rank)


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM set a flag, so that a step is never torn; a second one acts at once."""
    stop = _Stop()
    previous: dict[int, Any] = {}

    def request(number: int, _frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(number, previous[number])

    for stopping in (signal.SIGINT, signal.SIGTERM):
        previous[stopping] = signal.signal(stopping, request)
    try:
        yield stop
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)


def _write_artifacts(config: RunConfig, source: PairSource, run: _Run, folder: Path) -> None:
    """One artifact for each kind of image: `artifact`, or `artifact-x` and `artifact-y`."""
    for name, learnt in run.method.learnt().items():
        spec = ArtifactSpec(
            name=folder.name,
            normalisation=source.normalisation,
            provenance={
                **run.data,
                **learnt.provenance,
                "iterations": str(run.step),
                "batch_size": str(config.training.batch_size),
                "seed": str(config.training.seed),
                **provenance(read_sessions(folder)),
            },
            **learnt.fields,
        )
        save_artifact(folder / name, spec, learnt.state, model_card(spec))
