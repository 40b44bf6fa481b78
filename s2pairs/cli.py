"""The command `s2pairs`: simulate, build, append, merge, info, check, preview, export."""

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2pairs.bands import DEFAULT_BANDS, parse_bands
from s2pairs.errors import CubeError, S2PairsError
from s2pairs.sources import EXPECTED, open_source
from s2pairs.terminal import one_sentence, reported, shown_progress
from s2pairs.tiles import read_tiles

if TYPE_CHECKING:
    from s2pairs.build import Request
    from s2pairs.growing import Grown
    from s2pairs.running import Workers
    from s2pairs.scenes import Catalogue, Source, Wanted

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sentinel-2 tiles to a cube of patches at several dates.",
)


class Choice(StrEnum):
    """For what dates are chosen."""

    TILE = "tile"
    REGION = "region"


_DEFAULT_BANDS = ",".join(DEFAULT_BANDS)
_PROCESSORS = os.cpu_count() or 1

CubePath = Annotated[
    str, typer.Argument(metavar="CUBE", help="A cube: cube.zarr, s3://bucket/cube.zarr.")
]
CubeOut = Annotated[
    str, typer.Option(help="The cube to make, or to go on making: a path or a URL (s3://).")
]
SourceWord = Annotated[
    str, typer.Option(help=f"Where scenes are: {EXPECTED}. See docs/sources.md.")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(help="Also read from this host, name[:port] or s3://bucket, as often as needed."),
]
Tiles = Annotated[Path, typer.Option(help="Text file with one tile id a line, such as 31TCJ.")]
Bands = Annotated[str, typer.Option(help="Bands by name, in the order of the cube.")]
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="As 2016-01-31.")]

WorkerCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes of a Dask cluster on this machine; without it, threads of this process.",
    ),
]
SchedulerAddress = Annotated[
    str | None, typer.Option(help="Another Dask cluster instead, such as tcp://10.0.0.1:8786.")
]

RequiredDay = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="As 2016-01-31.")]

_SIMULATE_EXAMPLE = (
    "Example: s2pairs simulate --tiles configs/tiles/demo.txt --out products --size 1024 "
    "--dates 6 --start 2019-03-01 --end 2020-02-28"
)
_BUILD_EXAMPLE = (
    "Example: s2pairs build --tiles configs/tiles/sanchez2019.txt --source safe:products "
    "--out cube.zarr --start 2016-01-01 --end 2018-12-31"
)

_APPEND_EXAMPLE = "Example: s2pairs append cube.zarr --tiles more.txt --source safe:products"


@app.command(epilog=_SIMULATE_EXAMPLE)
def simulate(
    *,
    tiles: Tiles,
    out: Annotated[Path, typer.Option(help="Folder for the products, with truth/ in it.")],
    start: RequiredDay,
    end: RequiredDay,
    size: Annotated[int, typer.Option(min=1, help="Side of a scene, pixels of 10 m.")] = 10980,
    dates: Annotated[int, typer.Option(min=1, help="Clear dates a tile.")] = 12,
    cloudy_dates: Annotated[
        int | None, typer.Option(min=0, help="Cloudy dates besides; a third of --dates if unset.")
    ] = None,
    bands: Bands = _DEFAULT_BANDS,
    seed: Annotated[int, typer.Option(min=0, help="Makes the landscape and the weather.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = _PROCESSORS,
) -> None:
    """Make products of a landscape that does not exist, with its truth beside them.

    The same command makes the same bytes, and resumes an interrupted one. The days --start and
    --end both belong to the period.
    """
    with one_sentence(on_interrupt="the same command resumes it"):
        from s2pairs.simulate import simulate as run

        with shown_progress("products") as progress:
            made = run(
                read_tiles(tiles),
                out,
                size=size,
                dates=dates,
                start=start.date(),
                end=end.date(),
                bands=parse_bands(bands),
                seed=seed,
                cloudy_dates=cloudy_dates,
                workers=workers,
                progress=progress,
            )
        typer.echo(
            f"{made.out}: {len(made.products)} products ({made.written} new), truth in "
            f"{made.out / 'truth'}, {made.size_bytes / 1e6:.0f} MB"
        )


@app.command(epilog=_BUILD_EXAMPLE)
def build(
    *,
    tiles: Tiles,
    source: SourceWord,
    out: CubeOut,
    dates: Annotated[int, typer.Option(min=1, help="Dates a tile, regular in time.")] = 12,
    max_cloud: Annotated[float, typer.Option(help="Most cloud of a product, percent.")] = 2.0,
    regions: Annotated[int, typer.Option(min=1, help="Most regions a tile.")] = 100,
    region_size: Annotated[int, typer.Option(help="Side of a region, pixels of 10 m.")] = 512,
    start: Day = None,
    end: Day = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the regions.")] = 0,
    bands: Bands = _DEFAULT_BANDS,
    workers: WorkerCount = None,
    scheduler: SchedulerAddress = None,
    choice: Annotated[
        Choice,
        typer.Option(
            help="Choose dates for a whole tile, by the cloud of the product, or for each region "
            "those that are clear there, by masks."
        ),
    ] = Choice.TILE,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be done and what it costs; read no pixel."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="JSON for scripts: what happened, or with --plan what would."),
    ] = None,
    allow_host: Hosts = None,
) -> None:
    """Make a cube from products: choose dates, cut regions into patches, write them.

    The days --start and --end both belong to the period. An interrupted build resumes with the
    same command.
    """
    written = report or (_beside(out) if plan else None)
    with one_sentence(on_interrupt="the same command resumes it"), reported(written, out) as told:
        from s2pairs.build import Request
        from s2pairs.build import build as run

        request = Request(
            tiles=tuple(read_tiles(tiles)),
            bands=parse_bands(bands),
            dates=dates,
            max_cloud=max_cloud,
            regions=regions,
            region_size=region_size,
            start=start.replace(tzinfo=UTC) if start else None,
            end=_day_after(end) if end else None,
            seed=seed,
            choice=choice.value,
        )
        catalogue = open_source(
            source,
            request.bands,
            wanted=None if plan else request.wanted,
            hosts=tuple(allow_host or ()),
        )
        if plan:
            told.update(_planned(request, catalogue, workers or _PROCESSORS))
            typer.echo(f"nothing was built; the plan is in {written}")
            return
        with shown_progress("shards") as progress:
            made = run(
                request,
                catalogue,
                out,
                workers=_workers(workers, scheduler),
                progress=progress,
            )
        told.update(made.as_json())
        typer.echo(
            f"{made.path}: {made.patches} patches of {len(request.tiles)} tiles at "
            f"{made.dates} dates in {made.shards} shards "
            f"({made.already_built} stood already), {made.left_out} products left out"
            + "".join(f"; {remark}" for remark in made.remarks)
        )


def _beside(out: str) -> Path:
    """Where the plan of a cube goes: beside it, or here if it is to lie in object storage."""
    return Path(f"{out.rstrip('/').rpartition('/')[2] if '://' in out else out}.plan.json")


@app.command(epilog=_APPEND_EXAMPLE)
def append(
    cube: CubePath,
    *,
    source: SourceWord,
    tiles: Annotated[Path | None, typer.Option(help="Further tiles, one id a line.")] = None,
    dates: Annotated[int | None, typer.Option(min=1, help="So many further dates.")] = None,
    start: Day = None,
    end: Day = None,
    out: Annotated[
        str | None, typer.Option(help="Where the new cube shall be; the cube itself if unset.")
    ] = None,
    workers: WorkerCount = None,
    scheduler: SchedulerAddress = None,
    allow_host: Hosts = None,
) -> None:
    """Add tiles, or dates of the tiles it has, to a cube, chosen as its own were.

    The old cube stands until the new one is whole. An interrupted command resumes.
    """
    with one_sentence(on_interrupt="the cube is as it was; the same command resumes"):
        from s2pairs.growing import append_dates, append_tiles

        if (tiles is None) == (dates is None):
            raise S2PairsError("expected --tiles or --dates, one of them; for both run it twice")
        if tiles and (start or end):
            raise S2PairsError(
                "--start and --end go with --dates; tiles take the cube's own period"
            )
        period = (start.replace(tzinfo=UTC) if start else None, _day_after(end) if end else None)
        opened = _source(source, allow_host)
        runner = _workers(workers, scheduler)
        with shown_progress("shards") as progress:
            grown = (
                append_tiles(
                    cube,
                    read_tiles(tiles),
                    opened,
                    out or cube,
                    workers=runner,
                    progress=progress,
                )
                if tiles
                else append_dates(
                    cube,
                    dates or 0,
                    *period,
                    opened,
                    out or cube,
                    workers=runner,
                    progress=progress,
                )
            )
        typer.echo(_told(grown, "patches" if tiles else "dates"))


@app.command(epilog="Example: s2pairs merge north.zarr south.zarr --out both.zarr")
def merge(
    cubes: Annotated[list[str], typer.Argument(metavar="CUBE...", help="Two cubes or more.")],
    *,
    out: CubeOut,
    workers: WorkerCount = None,
    scheduler: SchedulerAddress = None,
) -> None:
    """Join cubes of the same bands, level and number of dates; ground in two counts once."""
    with one_sentence(on_interrupt="the same command resumes it"):
        from s2pairs.growing import merge as run

        if len(cubes) < 2:
            raise S2PairsError("expected two cubes or more to merge")
        with shown_progress("shards") as progress:
            grown = run(cubes, out, workers=_workers(workers, scheduler), progress=progress)
        typer.echo(_told(grown, "patches"))


def _source(source: str, hosts: list[str] | None) -> "Source":
    """A source that is opened when it is known for what."""

    def opened(bands: Sequence[str], wanted: "Wanted") -> "Catalogue":
        return open_source(source, bands, wanted=wanted, hosts=tuple(hosts or ()))

    return opened


def _told(grown: "Grown", what: str) -> str:
    if not grown.added:
        return f"{grown.path}: nothing to add, all of it is there"
    left_out = (
        f", {grown.left_out} left out whose ground or split is taken" if grown.left_out else ""
    )
    return (
        f"{grown.path}: {grown.added} {what} more{left_out}; now {grown.patches} patches at "
        f"{grown.dates} dates in {grown.shards} shards"
    )


@app.command(epilog="Example: s2pairs info cube.zarr")
def info(cube: CubePath) -> None:
    """Describe a cube: tiles, dates, splits, bands, valid pixels, shifts, size."""
    with one_sentence():
        from rich.console import Console
        from rich.table import Table

        from s2pairs.cube import open_cube
        from s2pairs.summary import describe

        table = Table(show_header=False, title=cube)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in describe(open_cube(cube)).items():
            table.add_row(name, value)
        Console().print(table)


@app.command(epilog="Example: s2pairs check cube.zarr")
def check(
    cube: CubePath,
    repair: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Mend it: rebuild from here what is missing or broken."
        ),
    ] = None,
    workers: WorkerCount = None,
    scheduler: SchedulerAddress = None,
    allow_host: Hosts = None,
) -> None:
    """Read a whole cube and compare it with its ledger; exit code 2 if anything differs."""
    with one_sentence(on_interrupt="what is mended stays; the same command goes on"):
        if repair is not None:
            _repair(cube, _source(repair, allow_host), _workers(workers, scheduler))
        else:
            _check(cube)


def _check(cube: str) -> None:
    from s2pairs.checking import check as verify

    damages = []
    with shown_progress("parts") as progress:
        for damage, done, total in verify(cube):
            progress(done, total)
            damages += [damage] if damage else []
    if damages:
        listed = "\n".join(f"  {damage}" for damage in damages)
        raise CubeError(f"{cube} is damaged in {len(damages)} places:\n{listed}")
    typer.echo(f"{cube}: all {total} parts are as they were built")


def _repair(cube: str, source: "Source", workers: "int | Workers") -> None:
    from s2pairs.checking import repair as mend

    with shown_progress("shards") as progress:
        done = mend(cube, source, workers=workers, progress=progress)
    mended = [f"put back {what}" for what in done.put_back]
    mended += [f"rebuilt {done.rebuilt} of {done.shards} shards"] if done.rebuilt else []
    typer.echo(f"{cube}: {'; '.join(mended) or 'nothing was damaged'}")
    if done.remaining:
        listed = "\n".join(f"  {reason}" for reason in done.remaining)
        raise CubeError(f"{len(done.remaining)} shards could not be mended:\n{listed}")


@app.command(epilog="Example: s2pairs preview cube.zarr --out dates.png")
def preview(
    cube: CubePath,
    out: Annotated[Path, typer.Option(help="Picture to write, .png.")],
    patches: Annotated[int, typer.Option(min=1, help="How many places.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Draws the places.")] = 0,
) -> None:
    """Draw a contact sheet: a few patches, their dates side by side in true colour."""
    with one_sentence():
        from s2pairs.cube import open_cube
        from s2pairs.preview import draw_dates

        drawn = draw_dates(open_cube(cube), out, count=patches, seed=seed)
        typer.echo(f"{out}: {drawn} patches")


@app.command(epilog="Example: s2pairs export cube.zarr --out index")
def export(
    cube: CubePath, out: Annotated[Path, typer.Option(help="Folder to write into.")]
) -> None:
    """Write the index of a cube as GeoParquet, and its products as a STAC collection."""
    with one_sentence(extra="export"):
        from s2pairs.cube import open_cube
        from s2pairs.export import export as run

        done = run(open_cube(cube), out)
        typer.echo(
            f"{done.folder}: {done.patches} patches, {done.looks} looks, {done.items} products in "
            "stac/collection.json"
        )


def main() -> None:
    """Entry point of the console script."""
    app()


def _planned(request: "Request", catalogue: "Catalogue", workers: int) -> dict[str, Any]:
    """Print what a build would do; the same as JSON values."""
    from s2pairs.build import choose, remarks
    from s2pairs.build import plan as all_but_pixels
    from s2pairs.cost import Watched, estimate, lines

    watched = Watched(catalogue)
    listings = choose(request, watched)
    planned = all_but_pixels(request, listings)
    found = estimate(listings, planned, catalogue, workers, request.wanted, watched.looks)
    said = remarks(request, listings, planned.table)
    for line in [*lines(found), *said]:
        typer.echo(line)
    return {**found.as_json(), "remarks": said}


def _day_after(day: datetime) -> datetime:
    if day.date() == date.max:
        raise S2PairsError(
            f"--end {day:%Y-%m-%d} is the last day there is; for no end leave it out"
        )
    return day.replace(tzinfo=UTC) + timedelta(days=1)


def _workers(count: int | None, address: str | None) -> "int | Workers":
    """Threads of this process, processes of this machine, or a cluster elsewhere."""
    from s2pairs.running import Processes, Scheduler

    if count and address:
        raise S2PairsError("expected --workers or --scheduler, not both")

    def announce(line: str) -> None:
        typer.echo(line, err=True)

    if address:
        return Scheduler(address, announce)
    if count and count > 1:
        return Processes(count, announce)
    return count or _PROCESSORS


if __name__ == "__main__":
    main()
