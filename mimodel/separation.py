"""Does likeness to a pixel separate its class from the others? The area under the ROC curve, beside
distances that need no model, with intervals.

A query pixel is asked for in its own image and in one of the same place at another date. Each
likeness ranks the pixels of a grid; the area is the share, of all pairs of one pixel of the query's
class and one of another, in which the former is more alike (a half is chance).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mimodel.artifact import Artifact
from mimodel.data.scenes import LabelledScene
from mimodel.errors import DataError
from mimodel.likeness import Comparison, Places
from mimodel.readouts import bootstrap_interval

_MAP = "mutual information"
SAME, OTHER = "the query's own image", "the same place at another date"
_FEWEST = 10
"""Pixels of the grid that a class needs to be asked for, and that others need beside it."""

Vectors = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Area:
    """Mean area under the ROC curve, with its 95 % interval by bootstrap over scenes."""

    likeness: str
    image: str
    area: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """How well likenesses separate classes, and what that was measured on."""

    artifact: str
    classes: tuple[str, ...]
    scenes: int
    queries: int
    stride: int
    areas: tuple[Area, ...]
    leads: tuple[Area, ...]
    """By how much the map is ahead of each distance, query by query: what intervals of the two
    areas, which rise and fall together from scene to scene, do not tell. Negative: behind."""
    by_class: Mapping[str, Mapping[str, float]]
    """Mean areas in the query's own image, by class and likeness."""

    def to_markdown(self) -> str:
        """The figures as tables, with what they were measured on."""
        names = list(dict.fromkeys(one.likeness for one in self.areas))
        found = {(one.likeness, one.image): one for one in self.areas}
        leads = {(one.likeness, one.image): one for one in self.leads}
        images = list(dict.fromkeys(one.image for one in self.areas))
        lines = [
            f"Artifact `{self.artifact}`; {self.queries} query pixels of {len(self.by_class)} "
            f"classes in {self.scenes} scenes, compared with every {self.stride}th pixel of a row "
            'and column. Mean area under the ROC curve of "same class as the query pixel" in %, '
            "with 95 % bootstrap intervals over scenes.",
            "",
            f"| likeness | {' | '.join(images)} |",
            f"|---|{'--:|' * len(images)}",
            *[
                f"| {name} | {' | '.join(_cell(found[name, image]) for image in images)} |"
                for name in names
            ],
            "",
            f"| {_MAP} is ahead of | {' | '.join(images)} |",
            f"|---|{'--:|' * len(images)}",
            *[
                f"| {name} | {' | '.join(_cell(leads[name, image]) for image in images)} |"
                for name in names
                if name != _MAP
            ],
            "",
            f"| class, {SAME} | {' | '.join(names)} |",
            f"|---|{'--:|' * len(names)}",
            *[
                f"| {name} | {' | '.join(f'{100 * areas[each]:.1f}' for each in names)} |"
                for name, areas in self.by_class.items()
            ],
        ]
        return "\n".join(lines) + "\n"


def separation(
    artifact: Artifact,
    scenes: Sequence[LabelledScene],
    *,
    stride: int = 8,
    queries: int = 2,
    seed: int = 0,
    report: Callable[[int, int], None],
) -> Separation:
    """Areas over `queries` pixels of each class, date and scene, by the map and by distances.

    The map is that of `mimodel.similarity` on a grid of `stride` pixels. Beside it stand Euclidean
    distances: of the pixels' normalised reflectance, of their whole patches, and of band
    statistics (mean and deviation over the patch, standardised over the scene).
    """
    rows = []
    for number, scene in enumerate(scenes):
        rows += _of_scene(artifact, scene, number, stride, queries, seed)
        report(number + 1, len(scenes))
    if not rows:
        raise DataError(
            f"no class has {_FEWEST} pixels of the grid in a scene that has as many of others; try "
            "larger scenes or a smaller stride"
        )
    names = list(dict.fromkeys(row.likeness for row in rows))
    images = [each for each in (SAME, OTHER) if any(row.image == each for row in rows)]
    classes = scenes[0].classes
    present = sorted({row.label for row in rows})
    own = [row for row in rows if row.image == SAME]
    return Separation(
        artifact=artifact.id,
        classes=classes,
        scenes=len({row.scene for row in rows}),
        queries=sum(row.likeness == names[0] for row in own),
        stride=stride,
        areas=tuple(_mean(rows, name, image) for image in images for name in names),
        leads=tuple(_mean(rows, n, image, _MAP) for image in images for n in names if n != _MAP),
        by_class={
            classes[label]: {
                name: float(
                    np.mean([r.area for r in own if (r.label, r.likeness) == (label, name)])
                )
                for name in names
            }
            for label in present
        },
    )


def write_separation(result: Separation, folder: Path) -> None:
    """separation.json and separation.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "separation.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "separation.md").write_text(result.to_markdown())


@dataclass(frozen=True)
class _Row:
    scene: int
    label: int
    likeness: str
    image: str
    area: float


def _of_scene(
    artifact: Artifact, scene: LabelledScene, number: int, stride: int, queries: int, seed: int
) -> list[_Row]:
    """Areas of queries drawn in each date of a scene, in that date and in the next one."""
    size = artifact.spec.patch_size
    comparison = Comparison(artifact)
    middle = size // 2
    centres = [np.arange(middle, n - (size - middle) + 1, stride) for n in scene.label.shape]
    label = scene.label[np.ix_(*centres)].ravel()
    rng = np.random.default_rng([seed, 7, number])
    looks = [_Look.of(artifact, comparison, pixels, size, stride) for pixels in scene.reflectance]
    rows = []
    for date, look in enumerate(looks):
        asked = _queries(label, look.valid, queries, rng)
        others = {SAME: look} | ({OTHER: looks[(date + 1) % len(looks)]} if len(looks) > 1 else {})
        for image, other in others.items():
            for likeness, scores in look.likenesses(other, asked, comparison).items():
                for query, ranked in zip(asked, scores, strict=True):
                    # The query itself is no finding.
                    counts = other.valid & (label >= 0) & (np.arange(len(label)) != query)
                    same = label[counts] == label[query]
                    if same.any() and not same.all():
                        area = area_under_curve(ranked[counts], same)
                        rows.append(_Row(number, int(label[query]), likeness, image, area))
    return rows


def _queries(
    label: npt.NDArray[np.int64],
    valid: npt.NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Points of the grid, at most `count` of each class that has enough to compare with."""
    known = valid & (label >= 0)
    drawn: list[int] = []
    for each in np.unique(label[known]):
        members = np.flatnonzero(known & (label == each))
        if _FEWEST <= len(members) <= known.sum() - _FEWEST:
            drawn += rng.choice(members, min(count, len(members)), replace=False).tolist()
    return np.array(drawn, np.int64)


@dataclass(frozen=True, eq=False)
class _Look:
    """A scene at one date: the patches around the points of the grid."""

    patches: npt.NDArray[np.float32]
    """(point, band, row, col), normalised."""
    valid: npt.NDArray[np.bool_]
    """Points whose own pixel has data."""
    places: Places

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        comparison: Comparison,
        pixels: npt.NDArray[np.float32],
        size: int,
        stride: int,
    ) -> "_Look":
        normalised = artifact.spec.normalisation(pixels)
        windows = np.lib.stride_tricks.sliding_window_view(normalised, (size, size), (1, 2))
        chosen = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4)
        seen = np.asarray(np.isfinite(pixels).all(0))[size // 2 :, size // 2 :]
        height, width = chosen.shape[:2]
        valid = seen[::stride, ::stride][:height, :width].ravel()
        patches = np.ascontiguousarray(chosen.reshape(-1, *chosen.shape[2:]))
        return cls(patches, valid, comparison.places(torch.from_numpy(patches)))

    def likenesses(
        self, other: "_Look", queries: npt.NDArray[np.int64], comparison: Comparison
    ) -> dict[str, Vectors]:
        """Scores (query, point of `other`) by name; higher is more alike."""
        if not len(queries):
            return {}
        middle = self.patches.shape[2] // 2
        vectors = {
            "raw reflectance": [each.patches[:, :, middle, middle] for each in (self, other)],
            "raw reflectance of the patch": [
                each.patches.reshape(len(each.patches), -1) for each in (self, other)
            ],
            "band statistics": [_band_statistics(each.patches) for each in (self, other)],
        }
        asked = comparison.places(torch.from_numpy(self.patches[queries]))
        return {_MAP: comparison.scores(asked, other.places).numpy()} | {
            name: -np.linalg.norm(own[queries, None] - others[None], axis=2)
            for name, (own, others) in vectors.items()
        }


def area_under_curve(scores: Vectors, same: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, by ranks; of pairs with equal scores, half count."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    count, others = int(same.sum()), int((~same).sum())
    return float((ranks[same].sum() - count * (count + 1) / 2) / (count * others))


def _band_statistics(patches: npt.NDArray[np.float32]) -> Vectors:
    """Mean and deviation of each band, standardised over the image: what a date has in common
    with itself is no likeness of its pixels."""
    statistics = np.concatenate([patches.mean((2, 3)), patches.std((2, 3))], axis=1)
    standard: Vectors = (statistics - statistics.mean(0)) / (statistics.std(0) + 1e-6)
    return standard


def _mean(rows: Sequence[_Row], likeness: str, image: str, ahead: str | None = None) -> Area:
    """Of one likeness; with `ahead`, by how much that one is ahead of it at the same queries."""
    chosen = [row for row in rows if (row.likeness, row.image) == (likeness, image)]
    areas = np.array([row.area for row in chosen])
    if ahead is not None:
        # All likenesses were asked for the same queries, in the same order.
        areas = [row.area for row in rows if (row.likeness, row.image) == (ahead, image)] - areas
    low, high = bootstrap_interval(areas, np.array([row.scene for row in chosen]))
    return Area(likeness, image, float(areas.mean()), low, high)


def _cell(area: Area) -> str:
    return f"{100 * area.area:.1f} ({100 * area.low:.1f} – {100 * area.high:.1f})"
