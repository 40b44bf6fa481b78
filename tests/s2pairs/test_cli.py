"""The commands, in a process of their own where it matters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from s2pairs.cli import app
from s2pairs.cube import open_cube
from s2pairs.errors import CubeError
from s2pairs.terminal import reported, shown_progress
from tests.worlds import RGBN, l1c, write_places

COMMANDS = ["simulate", "build", "append", "merge", "info", "check", "preview", "export"]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: str | Path) -> str:
    """The one sentence of a command that ends with exit code 2."""
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    sentence, _, more = result.stderr.rstrip().partition("\n")
    assert sentence.startswith("s2pairs: ")
    assert all(line.startswith("  ") for line in more.splitlines())
    return result.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of one tile at three dates, one of them cloudy."""
    folder = tmp_path_factory.mktemp("world")
    write_places(
        folder / "products",
        [
            l1c(day="2020-01-01", size=512),
            l1c(day="2020-03-01", size=512, cloud=40),
            l1c(day="2020-06-01", size=512, baseline="05.00"),
        ],
    )
    (folder / "tiles.txt").write_text("31TCJ  # Toulouse\n")
    return folder


def build(world: Path, out: str, *more: str) -> Result:
    return run(
        *("build", "--tiles", world / "tiles.txt", "--source", f"safe:{world / 'products'}"),
        *("--out", world / out, "--dates", "2", "--region-size", "128", *more),
    )


@pytest.fixture(scope="module")
def cube(world: Path) -> Path:
    result = build(world, "cube.zarr")
    assert result.exit_code == 0, result.output
    return world / "cube.zarr"


def test_there_are_no_other_commands() -> None:
    assert [
        command.callback.__name__ for command in app.registered_commands if command.callback
    ] == (COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_names_the_command(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: s2pairs {command} " in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_parses(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where nothing is, it fails for what is not there and not for how it is written."""
    monkeypatch.chdir(tmp_path)
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    words = text.partition("Example: s2pairs ")[2].split()
    sentence = refused(*words)
    assert "cannot read the tile list" in sentence or "no such folder" in sentence


def test_help_starts_without_the_heavy_libraries() -> None:
    program = (
        "import sys; sys.argv = ['s2pairs', 'build', '--help']\n"
        "from s2pairs.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'rasterio', 'xarray', 'zarr', 'dask', 'scipy', 'matplotlib', 'torch', 'pandas'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_build_says_what_it_made_and_where(world: Path) -> None:
    result = build(world, "said.zarr")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert f"{world / 'said.zarr'}: 32 patches of 1 tiles at 2 dates in 1 shards" in said
    assert "1 products left out" in said
    assert "1 of 1 shards" in result.stderr
    assert "no patch" not in said
    assert "(1 stood already)" in build(world, "said.zarr").stdout
    little = " ".join(build(world, "little.zarr", "--regions", "1").stdout.split())
    assert "1 products left out; no patch for " in little  # one region is not in three splits


def test_info_describes(cube: Path) -> None:
    result = run("info", cube)
    assert result.exit_code == 0
    for text in ("32 of 64 x 64", "31TCJ (32)", "B04, B03, B02, B08", "2020-01-01 to 2020-06-01"):
        assert text in result.stdout
    assert "2 used, 1 left out" in result.stdout
    digest = open_cube(cube).digest
    assert digest in "".join(result.stdout.replace("│", "").split())  # folded, not cut


def test_check_passes_and_preview_draws(cube: Path, tmp_path: Path) -> None:
    result = run("check", cube)
    assert (result.exit_code, "as they were built" in result.stdout) == (0, True)
    picture = tmp_path / "dates.png"
    result = run("preview", cube, "--out", picture, "--patches", "3")
    assert result.exit_code == 0, result.output
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.ndim == 3
    assert len(set(map(tuple, pixels.reshape(-1, pixels.shape[2]).tolist()))) > 500  # not blank
    sentence = refused("preview", cube, "--out", tmp_path / "nowhere" / "dates.png")
    assert "cannot write" in sentence


def test_check_finds_a_flipped_bit_and_names_the_shard(world: Path) -> None:
    assert build(world, "flipped.zarr").exit_code == 0
    file = world / "flipped.zarr" / "reflectance" / "c.0.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 16
    file.write_bytes(data)
    sentence = refused_check(world / "flipped.zarr")
    assert "shard 0: the bytes of" in sentence
    assert "run the same s2pairs build command again" in sentence
    assert build(world, "flipped.zarr").exit_code == 0
    assert run("check", world / "flipped.zarr").exit_code == 0


def refused_check(cube: Path) -> str:
    result = run("check", cube)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_missing_shard(world: Path) -> None:
    assert build(world, "missing.zarr").exit_code == 0
    (world / "missing.zarr" / "reflectance" / "c.0.0.0.0.0").unlink()
    assert "lacks shard 0" in refused("info", world / "missing.zarr")
    assert "shard 0: the file" in refused_check(world / "missing.zarr")


def test_repair_says_what_it_mended(world: Path) -> None:
    assert build(world, "mended.zarr").exit_code == 0
    path, source = world / "mended.zarr", f"safe:{world / 'products'}"
    assert "nothing was damaged" in run("check", path, "--repair", source).stdout
    (path / "reflectance" / "c.0.0.0.0.0").unlink()
    (path / "x" / "c" / "0").unlink()
    result = run("check", path, "--repair", source)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "put back coordinates and attributes, from their copy; rebuilt 1 of 1 shards" in said
    assert run("check", path).exit_code == 0


def test_an_append_ends_a_replacement_that_was_cut_off(
    cube: Path, world: Path, tmp_path: Path
) -> None:
    """Killed between the two renames, nothing is at the cube's place."""
    path = tmp_path / "c.zarr"
    for what in ("grown", "replaced"):
        shutil.copytree(cube, tmp_path / f".c.zarr.{what}")
    source = ("--source", f"safe:{world / 'products'}")
    result = run("append", path, "--tiles", world / "tiles.txt", *source)
    assert result.exit_code == 0, result.output
    assert [each.name for each in tmp_path.iterdir()] == ["c.zarr"]
    assert run("check", path).exit_code == 0


def test_the_report_has_the_exit_code_that_a_script_sees(tmp_path: Path) -> None:
    for error, code in ((ZeroDivisionError("ours"), 1), (CubeError("theirs"), 2)):
        with pytest.raises(type(error)), reported(tmp_path / "r.json", "cube.zarr"):
            raise error
        told = json.loads((tmp_path / "r.json").read_text())
        assert (told["outcome"], told["exit_code"]) == ("failed", code)


def test_growing_and_exporting(cube: Path, world: Path, tmp_path: Path) -> None:
    source = ("--source", f"safe:{world / 'products'}")
    result = run("append", cube, "--tiles", world / "tiles.txt", *source)
    assert (result.exit_code, "nothing to add" in result.stdout) == (0, True)
    assert "expected --tiles or --dates" in refused("append", cube, *source)
    both = ("--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert "not both" in refused("merge", cube, cube, "--out", tmp_path / "m.zarr", *both)
    assert "two cubes or more" in refused("merge", cube, "--out", tmp_path / "m.zarr")
    result = run("merge", cube, cube, "--out", tmp_path / "m.zarr")
    assert result.exit_code == 0, result.output
    assert open_cube(tmp_path / "m.zarr").patches == 32
    pytest.importorskip("geopandas")
    result = run("export", cube, "--out", tmp_path / "index")
    assert result.exit_code == 0, result.output
    assert "32 patches, 64 looks, 2 products" in " ".join(result.stdout.split())


def test_wrong_paths_and_lists(world: Path, tmp_path: Path) -> None:
    assert "is not a cube" in refused("info", tmp_path / "none.zarr")
    assert "is not a cube" in refused("check", tmp_path)
    nowhere = ("--repair", f"safe:{world / 'products'}")
    assert "is not a cube" in refused("check", tmp_path, *nowhere)
    assert "is not a cube" in refused("check", tmp_path / "none.zarr", *nowhere)
    assert "is not a cube" in refused("preview", tmp_path, "--out", tmp_path / "p.png")
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing yet\n")
    source = f"safe:{world / 'products'}"
    usual = ("--source", source, "--out", tmp_path / "c.zarr")
    assert "names no tile" in refused("build", "--tiles", empty, *usual)
    assert "cannot read the tile list" in refused("build", "--tiles", tmp_path / "no.txt", *usual)
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--source", "ftp:x"], "unknown source 'ftp:x'; expected safe:DIR"),
        (["--source", "safe:"], "expected safe:DIR"),
        (["--source", "safe:no-such-folder"], "is not a folder of .SAFE products"),
        (["--dates", "3"], "tile 31TCJ has 2 usable dates of the 3 needed"),
        (["--bands", "B04,B99"], "unknown band 'B99'"),
        (["--region-size", "100"], "not a multiple of 64"),
        (["--region-size", "0", "--choice", "region"], "region size 0 is not a multiple of 64"),
        (["--start", "2020-05-01"], "left out 2 outside the period"),
        (["--start", "2020-05-01", "--end", "2020-04-01"], "ends before it starts"),
    ],
)
def test_wrong_options(world: Path, options: list[str], expected: str) -> None:
    result = build(world, "wrong.zarr", *options)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert "Traceback" not in result.output
    assert not (world / "wrong.zarr").exists()
    assert not (world / "wrong.zarr.lock").exists()


def test_the_last_day_of_the_calendar(world: Path, tmp_path: Path) -> None:
    result = build(world, "wrong.zarr", "--end", "9999-12-31")
    assert result.exit_code == 2
    assert "s2pairs: --end 9999-12-31 is the last day there is" in result.stderr
    words = ("--tiles", world / "tiles.txt", "--out", tmp_path / "made", "--start", "9999-01-01")
    assert "give a year up to" in refused("simulate", *words, "--end", "9999-12-31")


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (".", "names no folder to make; give a path such as cube.zarr"),
        ("..", "names no folder to make; give a path such as ../cube.zarr"),
        ("file/cube.zarr", "cannot write file/cube.zarr.lock: "),
        ("folder", "cannot write folder.lock: Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_cube_cannot_be_made_there(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder.lock").mkdir()
    source = f"safe:{world / 'products'}"
    words = ("build", "--tiles", world / "tiles.txt", "--source", source, "--dates", "2")
    assert expected in refused(*words, "--out", out)
    assert Path("file").read_text() == "mine"


def simulate_into(out: Path, tiles: Path) -> tuple[str | Path, ...]:
    return (
        *("simulate", "--tiles", tiles, "--out", out, "--size", "128", "--dates", "1"),
        *("--cloudy-dates", "0", "--start", "2019-03-01", "--end", "2019-04-30", "--workers", "1"),
    )


def test_products_cannot_be_made_there(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    sentence = refused(*simulate_into(tmp_path / "file", world / "tiles.txt"))
    assert f"cannot write {tmp_path / 'file' / 'truth'}" in sentence
    (tmp_path / "truth").mkdir()
    for text in ("{", "[1]", "\x00"):
        (tmp_path / "truth" / "simulation.json").write_text(text)
        sentence = refused(*simulate_into(tmp_path, world / "tiles.txt"))
        assert "simulation.json is broken" in sentence


@pytest.mark.parametrize("room", [3, 300, 3_000, 12_000])
def test_a_full_disk_stops_a_simulation_with_one_sentence(
    world: Path, tmp_path: Path, room: int
) -> None:
    """The operating system refuses files above a size, as it does on a disk without room."""
    words = [str(word) for word in simulate_into(tmp_path / "made", world / "tiles.txt")]
    program = (
        f"import resource, sys; sys.argv = ['s2pairs', *{words!r}]\n"
        "from s2pairs.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("s2pairs: cannot write ")
    assert "; make room" in last
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "made").glob("*.SAFE"))


def test_without_the_extra_its_name_is_said(cube: Path) -> None:
    program = (
        "import sys; sys.modules['zarr'] = None\n"
        f"sys.argv = ['s2pairs', 'info', {str(cube)!r}]\n"
        "from s2pairs.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "s2pairs: zarr is missing; run pip install 'crossmi[cube]'\n"


def test_progress_has_a_line_at_each_tenth_however_it_advances(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown_progress("shards") as progress:
        for done in (0, 4, 8, 12, 16, 19, 20, 40):
            progress(done, 40)
    assert capsys.readouterr().err.splitlines() == [
        f"{done} of 40 shards" for done in (4, 8, 12, 16, 20, 40)
    ]


def test_both_days_belong_to_the_period(world: Path) -> None:
    result = build(world, "days.zarr", "--start", "2020-01-01", "--end", "2020-06-01")
    assert result.exit_code == 0, result.output


def test_simulate_then_build(tmp_path: Path) -> None:
    tiles = tmp_path / "tiles.txt"
    tiles.write_text("31TCJ\n")
    words = [
        *("simulate", "--tiles", tiles, "--out", tmp_path / "products", "--size", "384"),
        *("--dates", "2", "--cloudy-dates", "1", "--start", "2019-03-01", "--end", "2020-02-28"),
    ]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "3 products (3 new), truth in" in result.stdout
    assert "(0 new)" in run(*words).stdout
    result = run(
        *("build", "--tiles", tiles, "--source", f"safe:{tmp_path / 'products'}"),
        *("--out", tmp_path / "cube.zarr", "--dates", "2", "--region-size", "128"),
    )
    assert result.exit_code == 0, result.output
    assert list(RGBN) == ["B04", "B03", "B02", "B08"]
    assert "1 products left out" in " ".join(result.stdout.split())
