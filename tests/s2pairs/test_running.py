"""Builds by processes: a real Dask cluster, a worker that is killed, a scheduler elsewhere."""

import os
import pickle
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from s2pairs import filling
from s2pairs.build import Request, build
from s2pairs.cube import open_cube
from s2pairs.errors import S2PairsError
from s2pairs.running import Processes, Scheduler, Threads, run_all
from s2pairs.storage import store_at
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

distributed = pytest.importorskip("distributed")

TILES = ("31TCJ", "19KDQ")
SOURCE = Places(
    tuple(l1c(tile, day, size=896) for tile in TILES for day in ("2020-01-03", "2020-03-10"))
)
REQUEST = Request(tuple(map(TileId.parse, TILES)), ("B04",), dates=2, regions=49, region_size=128)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "cube.zarr"
    build(REQUEST, SOURCE, path, workers=1, progress=lambda *_: None)
    return path


@pytest.fixture(autouse=True)
def one_shard_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "TASK_BYTES", 1)


class Slow(Places):
    """Takes its time, so that a worker can be killed in the middle; says who reads."""

    def masks(self, scene, windows):  # type: ignore[no-untyped-def]
        Path(os.environ["WHO_READS"], str(os.getpid())).touch()
        time.sleep(2)
        return super().masks(scene, windows)


@pytest.mark.slow
def test_a_killed_worker_costs_a_repeat(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = tmp_path / "readers"
    readers.mkdir()
    monkeypatch.setenv("WHO_READS", str(readers))
    killed: list[int] = []

    def kill_one() -> None:
        limit = time.monotonic() + 240
        while not killed and time.monotonic() < limit:
            for each in readers.iterdir():
                os.kill(int(each.name), signal.SIGKILL)
                killed.append(int(each.name))
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    told: list[str] = []
    path = tmp_path / "cube.zarr"
    steps: list[tuple[int, int]] = []
    report = build(
        REQUEST,
        Slow(SOURCE.products),
        path,
        workers=Processes(2, told.append),
        progress=lambda done, total: steps.append((done, total)),
    )
    killer.join()
    (victim,) = killed
    assert victim != os.getpid()
    assert len(list(readers.iterdir())) >= 2  # another took over
    assert bytes_of(path) == bytes_of(whole)
    assert steps[-1] == (report.shards, report.shards)
    assert re.fullmatch(r"dashboard: http://127\.0\.0\.1:\d+/status", told[0])
    again = build(REQUEST, SOURCE, path, workers=Threads(1), progress=lambda *_: None)
    assert again.already_built == report.shards


@pytest.mark.slow
def test_a_scheduler_elsewhere(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        workers = Scheduler(cluster.scheduler_address, lambda _: None)
        build(REQUEST, SOURCE, path, workers=workers, progress=lambda *_: None)
        # its errors come back as ours
        broken = Places(SOURCE.products[:2] + SOURCE.products[3:])
        with pytest.raises(S2PairsError, match="19KDQ has 1 usable dates"):
            build(REQUEST, broken, tmp_path / "b.zarr", workers=workers, progress=lambda *_: None)
    assert bytes_of(path) == bytes_of(whole)
    assert open_cube(path).digest == open_cube(whole).digest


def test_a_scheduler_that_is_not_there_is_said(tmp_path: Path) -> None:
    workers = Scheduler("inproc://nobody/1/1", lambda _: None)
    with pytest.raises(S2PairsError, match="no Dask scheduler answers at inproc"):
        build(REQUEST, SOURCE, tmp_path / "c.zarr", workers=workers, progress=lambda *_: None)


def test_a_failing_task_ends_the_others() -> None:
    class One:
        parts = 1

    begun: list[int] = []

    def fail(task: One) -> None:
        if begun:
            time.sleep(0.02)  # whoever ends the others has ten seconds for it
        begun.append(id(task))
        raise S2PairsError("broken on purpose")

    with pytest.raises(S2PairsError, match="on purpose"):
        run_all(fail, [One() for _ in range(500)], Threads(1), lambda *_: None)
    assert len(begun) < 500


def test_what_a_worker_is_sent_can_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that hold connections make them anew; a path does not depend on where one stands."""
    from s2pairs.sources.reach import Reach
    from s2pairs.sources.sentinelhub import _Kept
    from s2pairs.sources.sentinelhub_service import EndPoints, Sender
    from s2pairs.sources.web import Patience, Web

    ends = EndPoints("https://example.org", "https://example.org/token")
    web = Web(Reach.of("https://example.org"), Patience(tries=2))
    for each in (web, Sender(ends, Patience()), _Kept()):
        assert type(pickle.loads(pickle.dumps(each))) is type(each)
    assert pickle.loads(pickle.dumps(web)).patience.tries == 2
    monkeypatch.chdir(tmp_path)
    sent = pickle.loads(pickle.dumps(store_at("cube.zarr")))
    assert sent.place == tmp_path / "cube.zarr"
