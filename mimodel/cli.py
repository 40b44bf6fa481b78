"""The command `mimodel`: train, probe, separation, embed, leakage, reproduce, data, info."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mimodel.errors import ConfigError, MimodelError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Representations of Sentinel-2 patches, learnt from pairs of dates without labels.",
)

_SECONDS_BETWEEN_LINES = 15
_EXTRAS = {
    "distributed": "cluster",
    "faiss": "service",
    "mujoco": "shapes3d",
    "h5py": "shapes3d",
    "openTSNE": "tsne",
}
"""Extras other than "train", by the packages that they bring."""


class DataName(StrEnum):
    """Benchmark data sets that can be fetched or made."""

    MNIST = "mnist"
    SHAPES3D = "shapes3d"
    WRITER_DIGITS = "writer-digits"
    FONT_WORDS = "font-words"


class StudyName(StrEnum):
    """The paper's experiments, variants, stand-ins; the keys of `mimodel.studies.STUDIES`."""

    MNIST = "mnist"
    MNIST_STANDARDISED = "mnist-standardised"
    SHAPES3D = "shapes3d"
    SHAPES3D_STANDARDISED = "shapes3d-standardised"
    IAM = "iam"
    WRITER_DIGITS = "writer-digits"
    FONT_WORDS = "font-words"
    ABLATION = "ablation"
    SWEEP = "sweep"


@app.command(
    epilog="Example: mimodel train --config configs/data/sentinel2.yaml "
    "--config configs/method/infomax.yaml --set data.cube=cube.zarr --out runs/shared"
)
def train(
    config: Annotated[list[Path], typer.Option(help="YAML file; repeatable, later ones win.")],
    out: Annotated[Path, typer.Option(help="Run folder to make, or to continue.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override any field; repeatable."),
    ] = None,
) -> None:
    """Learn a representation and write it as an artifact.

    Ctrl-C stops after the step in hand; the same command continues the run. Several processes
    share each batch when torchrun starts them: torchrun --nproc-per-node 2 -m mimodel train ...
    """
    with _one_sentence():
        from mimodel.config import load_config
        from mimodel.parallel import is_first
        from mimodel.train import train as run

        resolved = load_config(config, set_ or [])
        with _progress(out.name) as report:
            result = run(resolved, out, report)
        if not is_first():
            return
        figures = ", ".join(f"{k} {v:.3f}" for k, v in result.figures.items() if k != "step")
        took = f"{result.step} steps in {result.seconds / 60:.1f} minutes; {figures}"
        if not result.finished:
            typer.echo(f"{out}: stopped after {took}. The same command continues.", err=True)
            raise typer.Exit(130)
        made = " and ".join(str(artifact) for artifact in result.artifacts)
        typer.echo(f"{made}: {took}; curves in {out / 'curves.png'}")


@app.command(
    epilog="Example: mimodel probe runs/shared/artifact --cube cube.zarr "
    "--labels products/truth/landcover --out runs/shared/probe"
)
def probe(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    out: Annotated[Path, typer.Option(help="Folder for figures and pictures.")],
    cube: Annotated[Path | None, typer.Option(help="Cube whose patches are probed.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of categorical rasters, <tile>.tif, for --cube.")
    ] = None,
    eurosat: Annotated[Path | None, typer.Option(help="EuroSAT RGB archive, .tar.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of the MLP of Table 7.")] = 10_000,
    dates: Annotated[int, typer.Option(min=1, help="Dates a place, at most.")] = 4,
    min_valid: Annotated[float, typer.Option(help="Valid pixels a look needs, 0 to 1.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Draws dates, queries, initial weights.")] = 0,
) -> None:
    """Measure what a frozen representation knows, beside controls, with intervals.

    Give --cube with --labels, or --eurosat. The MLP of Table 7 is put into the artifact, so that
    the service can classify with it.
    """
    with _one_sentence():
        _alone()
        from mimodel.artifact import Artifact
        from mimodel.card import model_card
        from mimodel.probe import draw_retrieval, feature_sets, write_report
        from mimodel.probe import probe as run

        if {bool(cube), bool(labels)} != {not eurosat}:
            raise ConfigError("give either --cube with --labels, or --eurosat")
        out.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost
        loaded = Artifact.load(artifact)
        if cube and labels:
            from mimodel.data.sentinel2 import labelled_cube

            data = labelled_cube(
                cube, labels, bands=loaded.spec.bands, min_valid=min_valid, dates=dates, seed=seed
            )
        else:
            from mimodel.data.eurosat import labelled_eurosat

            assert eurosat
            data = labelled_eurosat(eurosat)
        head = "eurosat" if eurosat else "landcover"
        typer.echo(f"embedding {len(data.label)} patches")
        features = feature_sets(loaded, data)
        report, probed = run(
            loaded, data, features, head=head, iterations=iterations, seed=seed, report=typer.echo
        )
        write_report(report, out)
        if report.retrieval:
            picture = out / "retrieval.png"
            draw_retrieval(loaded, data, features["shared"], picture, seed=seed)
        saved = probed.save(artifact, model_card(probed.spec, report.to_markdown()))
        typer.echo(report.to_markdown())
        typer.echo(f"{out}: figures; {artifact} is now {saved.id} with the head {head!r}")


@app.command(
    epilog="Example: mimodel separation runs/pixels/artifact --cube cube.zarr "
    "--labels products/truth/landcover --out runs/pixels/separation"
)
def separation(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    cube: Annotated[Path, typer.Option(help="Cube whose test scenes are mapped.")],
    labels: Annotated[Path, typer.Option(help="Folder of categorical rasters, <tile>.tif.")],
    out: Annotated[Path, typer.Option(help="Folder for figures.")],
    size: Annotated[int, typer.Option(help="Side of a scene in pixels, a multiple of 64.")] = 256,
    dates: Annotated[int, typer.Option(min=1, help="Dates a scene, at most.")] = 3,
    stride: Annotated[int, typer.Option(min=1, help="Pixels between those compared.")] = 8,
    queries: Annotated[int, typer.Option(min=1, help="Query pixels a class, date and scene.")] = 2,
    min_valid: Annotated[float, typer.Option(help="Valid pixels a look needs, 0 to 1.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Draws the query pixels.")] = 0,
) -> None:
    """Measure how well similarity maps separate the class of their query pixel, beside distances.

    On scenes of the cube's test split: area under the ROC curve, with intervals.
    """
    with _one_sentence():
        _alone()
        from mimodel.artifact import Artifact
        from mimodel.data.scenes import labelled_scenes
        from mimodel.separation import separation as run
        from mimodel.separation import write_separation

        out.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost
        loaded = Artifact.load(artifact)
        scenes = labelled_scenes(
            cube, labels, bands=loaded.spec.bands, size=size, dates=dates, min_valid=min_valid
        )
        result = run(
            loaded,
            scenes,
            stride=stride,
            queries=queries,
            seed=seed,
            report=lambda done, total: typer.echo(f"scene {done} of {total}", err=True),
        )
        write_separation(result, out)
        typer.echo(result.to_markdown())
        typer.echo(f"{out}: separation.md and separation.json")


@app.command(
    epilog="Example: mimodel leakage runs/mnist/exclusive --out runs/mnist/exclusive/leakage"
)
def leakage(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a benchmark.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a field of the run, as its data."
        ),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of the MLP of Table 7.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Draws colours and initial weights.")] = 0,
    tsne: Annotated[
        bool, typer.Option("--tsne", help="Draw the shared representation in two dimensions.")
    ] = False,
) -> None:
    """Read every factor from every representation: what each knows, and what has leaked.

    For runs on a benchmark, whose factors are all known: its data are those of the run.
    """
    with _one_sentence():
        _alone()
        from mimodel.artifact import run_artifacts
        from mimodel.config import load_config
        from mimodel.data.pairs import DOMAINS
        from mimodel.leakage import measure

        artifacts = dict(zip(DOMAINS, run_artifacts(run_folder), strict=False))
        data = load_config([run_folder / "config.yaml"], set_ or []).benchmark()
        matrices = measure(
            artifacts,
            lambda domain: data.labelled(domain, seed),
            out,
            iterations=iterations,
            seed=seed,
            report=typer.echo,
            tsne=tsne,
        )
        for matrix in matrices:
            typer.echo(matrix.to_markdown())
        typer.echo(f"{out}: figures and pictures of what is retrieved")


@app.command(epilog="Example: mimodel reproduce mnist --data mnist --out runs/mnist --seeds 3")
def reproduce(
    study: Annotated[StudyName, typer.Argument(help="Which experiment of the paper.")],
    folder: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of the data set's files; data/<its name> if unset."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and report; runs/<study> if unset.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Of the shared stage; the paper's if unset.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with a seed.")] = 1,
    config: Annotated[
        list[Path] | None, typer.Option(help="YAML file that makes a variant; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override any field; repeatable."),
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="Folder of the configurations; those that came if unset.")
    ] = None,
    classifier_iterations: Annotated[
        int, typer.Option(min=1, help="Steps of the MLP of Table 7.")
    ] = 10_000,
) -> None:
    """Repeat an experiment of the paper: its stages, every factor, one page.

    Fetches or makes the data where they are missing (all but IAM, which its user brings). Ctrl-C
    stops; the same command goes on.
    """
    with _one_sentence():
        _alone()
        from mimodel.config import default_configs
        from mimodel.reproduce import Settings
        from mimodel.reproduce import reproduce as run
        from mimodel.studies import STUDIES

        chosen = STUDIES[study.value]
        out = out or Path("runs") / study.value
        page = run(
            chosen,
            folder or Path("data") / chosen.data,
            out,
            Settings(
                configs=configs or default_configs(),
                extra=config or (),
                overrides=set_ or (),
                iterations=iterations,
                seeds=seeds,
                classifier_iterations=classifier_iterations,
            ),
            training=_plain_lines,
            report=typer.echo,
        )
        if page is None:
            typer.echo(f"{out}: stopped. The same command continues.", err=True)
            raise typer.Exit(130)
        typer.echo(page.read_text())
        typer.echo(f"{page}: the report")


@app.command(
    epilog="Example: mimodel embed --cube cube.zarr --artifact runs/shared/artifact --out index"
)
def embed(
    cube: Annotated[Path, typer.Option(help="Cube whose patches are embedded, at all dates.")],
    artifact: Annotated[Path, typer.Option(help="Folder of an artifact.")],
    out: Annotated[Path, typer.Option(help="Folder for the index, or the one to go on with.")],
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT",
            help="Dask scheduler whose workers do it; they see the folders by the same paths.",
        ),
    ] = None,
) -> None:
    """Embed every patch of a cube at every date, as an index that the service searches in.

    Ctrl-C stops; the same command goes on. What is finished is checked and kept.
    """
    with _one_sentence(interrupted="interrupted; the same command goes on"):
        _alone()
        from mimodel.embed import embed_cube

        with _progress(out.name, "patch") as report:
            made = embed_cube(
                artifact,
                cube,
                out,
                scheduler=scheduler,
                progress=lambda done, total: report(done, total, {}),
            )
        size = sum(file.bytes for file in made.files.values())
        names = " and ".join(made.representations)
        typer.echo(
            f"{out}: {names} of {made.patches} patches at {made.dates} dates by {made.artifact}, "
            f"{size / 1e6:.1f} MB; crossmi-service --artifact {artifact} --index {out} searches it"
        )


@app.command(epilog="Example: mimodel data mnist --to mnist")
def data(
    name: Annotated[DataName, typer.Argument(help="Which data set.")],
    to: Annotated[Path, typer.Option(help="Folder for its files.")],
) -> None:
    """Fetch or make a benchmark data set and verify it; what is there already is kept."""
    with _one_sentence():
        from mimodel.data.fetch import fetch

        fetch(name.value, to, typer.echo)


@app.command(epilog="Example: mimodel info runs/shared/artifact")
def info(artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")]) -> None:
    """Verify an artifact and print its model card."""
    with _one_sentence():
        from mimodel.artifact import Artifact

        loaded = Artifact.load(artifact)
        typer.echo((artifact / "README.md").read_text())
        typer.echo(f"{loaded.id}: verified, SHA-256 {loaded.digest}")


def main() -> None:
    """Entry point of the console script."""
    app()


def _alone() -> None:
    """Refuse several processes where they would write over each other."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("torchrun can share `mimodel train` alone; run this as one process")


@contextmanager
def _one_sentence(interrupted: str = "interrupted") -> Iterator[None]:
    """Errors meant for the user become a sentence and exit code 2, Ctrl-C exit code 130."""
    try:
        yield
    except MimodelError as error:
        typer.echo(f"mimodel: {error}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "", "train")
        needs = f"this needs the package {error.name}; install crossmi[{extra}]"
        typer.echo(f"mimodel: {needs}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"mimodel: {error.filename or 'the system'}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"mimodel: {interrupted}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress(
    name: str, unit: str = "step"
) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty() or "RANK" in os.environ:
        yield _plain_lines(name, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, loss="")
        yield lambda step, total, figures: bar.update(
            task, completed=step, total=total, loss=_loss(figures)
        )


def _plain_lines(name: str, unit: str = "step") -> Callable[[int, int, Mapping[str, float]], None]:
    from mimodel.parallel import is_first

    printed = time.monotonic()

    def report(step: int, total: int, figures: Mapping[str, float]) -> None:
        nonlocal printed
        due = step == total or time.monotonic() - printed > _SECONDS_BETWEEN_LINES
        if due and is_first():
            printed = time.monotonic()
            typer.echo(f"{name}: {unit} {step} of {total} {_loss(figures)}", err=True)

    return report


def _loss(figures: Mapping[str, float]) -> str:
    return f"loss {figures['total']:.3f}" if "total" in figures else ""
