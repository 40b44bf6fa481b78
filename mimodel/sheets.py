"""Pictures of what representations know, as in the paper's figures 4 and 5 and its supplement's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimodel.data.pairs import LabelledImages
from mimodel.readouts import MLP, Features, Reading, standardised

_SHOWN = 9
_TITLE = 0.15
"""Inches above a row of a retrieval sheet."""
_EMBEDDED = 2000
"""Test images in a t-SNE; more of them hide each other."""
_COLOURS = {"shared": "tab:red", "exclusive": "tab:blue"}


def draw_retrieval_sheet(
    features: Mapping[str, Features],
    data: LabelledImages,
    picture: Path,
    *,
    rows: int = 5,
    seed: int = 0,
) -> None:
    """Figure 4 of the paper: queries, and the nearest test images by each representation.

    Which of those that are equally near are shown is drawn by the seed.
    """
    plt = _pyplot()
    train, test = data.split == "train", np.flatnonzero(data.split == "test")
    rng = np.random.default_rng(seed)
    queries = rng.choice(test, min(rows, len(test)), replace=False)
    test = rng.permutation(test)
    height, width = data.images.shape[2:]
    panel = 0.8 if width <= height else 1.4  # inches; words need more than squares
    figure, axes = plt.subplots(
        len(queries) * len(features),
        _SHOWN + 1,
        figsize=(
            panel * (_SHOWN + 1),
            (panel * height / width + _TITLE) * len(queries) * len(features),
        ),
        squeeze=False,
    )
    for index, (name, values) in enumerate(features.items()):
        scaled = standardised(values, train)
        for query, row in zip(queries, axes[index * len(queries) :], strict=False):
            distance = ((scaled[test] - scaled[query]) ** 2).sum(1)
            order = distance.argsort(kind="stable")
            nearest = [one for one in test[order] if one != query][:_SHOWN]
            for axis in row:
                axis.set_axis_off()
            for axis, sample in zip(row, [query, *nearest], strict=False):
                _show(axis, data.images[sample])
            row[0].set_title("query", fontsize=6, pad=2)
            row[1].set_title(f"nearest by the {name} representation", fontsize=6, pad=2, loc="left")
    _save(figure, picture)


def draw_learning_curves(readings: Sequence[Reading], picture: Path) -> None:
    """Figure 1 of the supplement: the classifier's accuracy on each factor over its steps."""
    plt = _pyplot()
    factors = list(dict.fromkeys(one.factor for one in readings))
    figure, axes = plt.subplots(1, len(factors), figsize=(2.6 * len(factors), 2.4), squeeze=False)
    for factor, axis in zip(factors, axes[0], strict=True):
        for one in readings:
            if one.factor == factor and one.curve:
                steps, accuracy = zip(*one.curve, strict=True)
                colour = _COLOURS.get(one.representation)
                axis.plot(steps, accuracy, lw=1, color=colour, label=one.representation)
                axis.axhline(one.chance, lw=0.8, ls=":", color="grey")
        axis.set(title=factor, xlabel="step of the classifier", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy")
    axes[0][0].legend(fontsize=7)
    _save(figure, picture)


def draw_sweep(
    values: Sequence[float], readings: Sequence[Sequence[Sequence[Reading]]], picture: Path
) -> None:
    """Figure 5: accuracy on each factor from the exclusive representation, over lambda_adv.

    `readings` has for each value those of one run a seed: lines are the mean over the seeds, bands
    reach from the least to the greatest; dotted lines are the ideal.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4.2, 3))
    wanted = [
        [
            {
                one.factor: one
                for one in run
                if (one.representation, one.probe) == ("exclusive", MLP)
            }
            for run in seeds
        ]
        for seeds in readings
    ]
    for index, (factor, first) in enumerate(wanted[0][0].items()):
        accuracies = np.array([[run[factor].accuracy for run in seeds] for seeds in wanted])
        colour = f"C{index}"
        axis.plot(values, accuracies.mean(1), "o-", ms=3, lw=1, color=colour, label=factor)
        axis.fill_between(
            values, accuracies.min(1), accuracies.max(1), color=colour, alpha=0.2, lw=0
        )
        axis.axhline(first.ideal or 0, lw=0.8, ls=":", color=colour)
    axis.set(xlabel="lambda_adv", ylabel="test accuracy from E", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    _save(figure, picture)


def draw_tsne(features: Features, data: LabelledImages, picture: Path, *, seed: int = 0) -> None:
    """Figure 2 of the supplement: test images in two dimensions, by the first shared factor, and
    the images themselves where they lie. Needs openTSNE."""
    from openTSNE import TSNE

    plt = _pyplot()
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    test = np.flatnonzero(data.split == "test")
    chosen = np.random.default_rng(seed).permutation(test)[:_EMBEDDED]
    scaled = standardised(features, data.split == "train")[chosen]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    flat = np.asarray(TSNE(perplexity=perplexity, random_state=seed, n_jobs=1).fit(scaled))
    factor = data.shared[0]
    figure, (labels, images) = plt.subplots(1, 2, figsize=(11, 5.5))
    labels.scatter(*flat.T, c=data.factors[factor][chosen], cmap="tab20", s=5, lw=0)
    labels.set_title(factor, fontsize=9)
    images.scatter(*flat.T, s=0)
    for sample, (x, y) in list(zip(chosen, flat, strict=True))[: _EMBEDDED // 10]:
        zoom = 24 / max(data.images.shape[2:])
        thumbnail = OffsetImage(_shown(data.images[sample]), zoom=zoom, cmap="gray")
        images.add_artist(AnnotationBbox(thumbnail, (x, y), frameon=False))
    for axis in (labels, images):
        axis.set_xticks([])
        axis.set_yticks([])
    _save(figure, picture)


def _show(axis: Any, image: Features) -> None:
    axis.imshow(_shown(image), cmap="gray", vmin=0, vmax=1)


def _shown(image: Features) -> Features:
    """(band, row, col) as matplotlib shows it: colour, or one grey band."""
    clipped: Features = image.clip(0, 1)
    return clipped[0] if len(clipped) == 1 else clipped.transpose(1, 2, 0)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, picture: Path) -> None:
    figure.tight_layout(pad=0.5)
    figure.savefig(picture, dpi=130)
    _pyplot().close(figure)
