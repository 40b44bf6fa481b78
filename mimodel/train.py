"""The one training loop: a game of players, resumable, the same for every method and data set.

A run folder holds

    config.yaml      the resolved configuration
    metrics.jsonl    one line every `log_every` steps: mean terms since the line before
    tensorboard/     the same figures
    checkpoint.pt    for resuming alone
    curves.png       the terms over the steps
    artifact/        what the world gets

The same command continues a run that was stopped. Batches, negatives and initial weights are
functions of seed and step, so a resumed run equals an uninterrupted one.
"""

import json
import math
import os
import pickle
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, final

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.tensorboard import SummaryWriter

from mimodel.artifact import ArtifactSpec, save_artifact
from mimodel.config import RunConfig, TrainingConfig, dump_config, load_config
from mimodel.data.pairs import PairBatch, PairSource, prefetched
from mimodel.errors import TrainingError
from mimodel.methods.base import Method, Player
from mimodel.networks import inference_dtype

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
    """
    _check_folder(config, folder)
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    source = config.data.open(settings.seed, config.method.normalisation())
    run = _Run.start(config, source)
    # Only now: a wrong path in the configuration leaves no folder that belongs to it.
    _claim(config, folder)
    run.resume(folder)
    artifacts = tuple(folder / name for name in run.method.learnt())
    if run.over and all(artifact.exists() for artifact in artifacts):
        # A head that a probe has put into the artifact would be lost.
        latest = (read_metrics(folder / "metrics.jsonl") or [{}])[-1]
        return TrainingResult(folder, run.step, True, latest, run.seconds, artifacts)
    with _MetricsFile(folder, run.step) as metrics, _stop_signals() as stop:
        steps = range(run.step, run.step if run.over else settings.iterations)
        for batch in prefetched(source, steps, settings.batch_size):
            run.advance(batch)
            if run.step % settings.log_every == 0 or run.over:
                metrics.write(run.step, run.figures())
            report(run.step, settings.iterations, metrics.latest)
            if stop.requested or run.over or run.step % settings.checkpoint_every == 0:
                run.save(folder)
            if run.over:
                break
            if stop.requested:
                return TrainingResult(folder, run.step, False, metrics.latest, run.seconds)
    draw_curves(folder / "metrics.jsonl", folder / "curves.png")
    _write_artifacts(config, source, run, folder)
    return TrainingResult(folder, run.step, True, metrics.latest, run.seconds, artifacts)


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
    summed: int = 0

    @classmethod
    def start(cls, config: RunConfig, source: PairSource) -> "_Run":
        settings = config.training
        device = _device(settings)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            method = config.method.build(len(source.normalisation.bands), source.image_size)
        method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        batch = PairBatch(self._place(batch.x), self._place(batch.y))
        generator = self._generator()
        for player, optimiser in zip(self.method.players, self.optimisers, strict=True):
            for _ in range(player.steps):
                terms = self._terms(player, batch, generator)
                optimiser.zero_grad()
                torch.stack(list(terms.values())).sum().backward(inputs=list(player.parameters))
                optimiser.step()
            for name, term in terms.items():
                # Left on the device: fetching a number would wait for the step to end.
                self.sums[name] = self.sums.get(name, 0) + term.detach()
        self.step += 1
        self.summed += 1
        self.seconds += time.perf_counter() - started

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
        """Means of the terms since the last figures; one that is not finite ends the run."""
        means = {name: float(total) / self.summed for name, total in self.sums.items()}
        for name, mean in means.items():
            if not np.isfinite(mean):
                raise TrainingError(
                    f"the term {name!r} became {mean} between steps {self.step - self.summed} and "
                    f"{self.step}; the checkpoint before is kept. Try precision float32 or a lower "
                    "learning rate"
                )
        return means

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
                f"the data of {folder}, or the shared encoder under it, have changed since its "
                f"checkpoint ({said}); bring them back, or choose another --out"
            )

    def save(self, folder: Path) -> None:
        """Write the checkpoint; a kill in the middle, or a term that is not finite, leaves the one
        before."""
        self._means()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "data": self.data,
            "sums": self.sums,
            "summed": self.summed,
            "method": self.method.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        partial = folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(folder / "checkpoint.pt")

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


@final
class _MetricsFile:
    """metrics.jsonl and TensorBoard, without the lines that a resumed run will write again."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        self.latest: dict[str, float] = kept[-1] if kept else {}
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.latest = {"step": step, **figures}
        with self._path.open("a") as file:
            file.write(json.dumps(self.latest) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "_MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl; none where there is no file. A torn last line is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def draw_curves(metrics: Path, picture: Path) -> None:
    """Each term of the objective over the steps, one panel a term."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(metrics)
    names = [name for name in lines[-1] if name != "step"] if lines else []
    figure, axes = plt.subplots(
        1, max(len(names), 1), figsize=(3.2 * max(len(names), 1), 2.6), squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=False):
        axis.plot([line["step"] for line in lines], [line[name] for line in lines], lw=1)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
    figure.suptitle("weighted terms, minimised", fontsize=9)
    figure.tight_layout()
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def _check_folder(config: RunConfig, folder: Path) -> None:
    """Refuse a folder that belongs to another configuration."""
    path = folder / "config.yaml"
    if path.exists() and load_config([path]) != config:
        raise TrainingError(
            f"{folder} holds a run of another configuration ({path}); choose another --out, or "
            "remove the folder to start anew"
        )


def _claim(config: RunConfig, folder: Path) -> None:
    """Make the run folder, with its configuration in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_config(config))
    except OSError as error:
        raise TrainingError(f"cannot write the run folder {folder}: {error}") from error


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"


def _device(settings: TrainingConfig) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("training.device is cuda, but no GPU is visible; use cpu or auto")
    return torch.device(settings.device)


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
                "commit": _commit(),
                "crossmi": version("crossmi"),
                "torch": str(torch.__version__),
                "device": _device_name(run.device),
                "precision": str(run.autocast).removeprefix("torch."),
            },
            **learnt.fields,
        )
        save_artifact(folder / name, spec, learnt.state, model_card(spec))


_REFLECTANCE = "reflectance (unitless, 10 m a pixel, NaN where there is no data)"


def model_card(spec: ArtifactSpec, evaluation: str = "") -> str:
    """README.md of an artifact: what it reads, where it comes from, what it is good for."""
    pixels = spec.provenance.get("pixels", _REFLECTANCE)
    height, width = spec.encoder.image_size
    lines = [
        f"# {spec.name}",
        "",
        "Learnt from pairs of images by mutual information (Sanchez, Serrurier, Ortner 2019).",
        "Shared is what both images of a pair have in common, such as the place at two dates;",
        "exclusive is what one of them has alone.",
        "",
        f"- reads: {', '.join(spec.bands)} as {pixels}, {height} x {width} pixels",
        f"- gives: {', '.join(f'{n} ({d})' for n, d in spec.representations.items())}",
        *[f"- head {name}: {', '.join(head.classes)}" for name, head in spec.heads.items()],
        *[
            f"- {name.replace('_', ' ')}: {value}"
            for name, value in spec.provenance.items()
            if name != "pixels"
        ],
        "",
    ]
    if pixels == _REFLECTANCE:
        lines.append(
            "Contains modified Copernicus Sentinel data where it was trained on real products."
        )
    return "\n".join(lines) + "\n" + (f"\n{evaluation}\n" if evaluation else "")


def _commit() -> str:
    """Commit of the source tree that this module runs from, or 'unknown' outside of one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
