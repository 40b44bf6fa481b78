"""What a run writes about itself while it goes on: metrics.jsonl, TensorBoard, curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

from torch.utils.tensorboard import SummaryWriter

from mimodel.whole import write_whole


@final
class MetricsFile:
    """metrics.jsonl and TensorBoard, without the lines that a resumed run will write again."""

    def __init__(self, folder: Path, step: int, *, writes: bool = True) -> None:
        """`writes` is true in one of the processes that train together."""
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        self.latest: dict[str, float] = kept[-1] if kept else {}
        self._board = None
        if writes:
            lines = "".join(json.dumps(line) + "\n" for line in kept)
            write_whole(self._path, lambda file: file.write(lines.encode()))
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.latest = {"step": step, **figures}
        if self._board is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(self.latest) + "\n")
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
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
