"""An upload makes GDAL read no other file and call no other host: two walls, each tried alone."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from service.decode import Declared, Expected, decode_patches
from service.errors import MalformedError
from service.formats import TIFF
from tests.service import bodies

CANARY = np.full((4, 64, 64), 77, np.uint8)
PIXELS = CANARY.tobytes()


class CanaryServer(HTTPServer):
    """Serves the canary under any path and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked
        picture = bodies.geotiff_bytes(CANARY)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(picture)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(picture)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def canary_server() -> Iterator[CanaryServer]:
    with CanaryServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def canary_file(tmp_path: Path) -> Path:
    path = tmp_path / "canary.tif"
    path.write_bytes(bodies.geotiff_bytes(CANARY))
    return path


# Opens each file that it is given as GDAL likes best, and prints the pixels that come out.
READ = """
import sys, warnings
{before}
from pathlib import Path
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
warnings.simplefilter("ignore", NotGeoreferencedWarning)
for path in sys.argv[1:]:
    try:
        with MemoryFile(Path(path).read_bytes()) as file, file.open() as dataset:
            sys.stdout.buffer.write(dataset.read().tobytes())
    except RasterioError:
        pass
"""
LIMIT = "from service.formats import limit_gdal; limit_gdal()"


def pixels_read(folder: Path, payloads: list[bytes], before: str = "") -> bytes:
    """What a process of its own reads out of the payloads, one after the other."""
    paths = [folder / str(number) for number in range(len(payloads))]
    for path, payload in zip(paths, payloads, strict=True):
        path.write_bytes(payload)
    command = [sys.executable, "-c", READ.format(before=before), *map(str, paths)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_without_a_wall_a_vrt_reads_any_file_and_calls_any_host(
    tmp_path: Path, canary_file: Path, canary_server: CanaryServer
) -> None:
    # So the payloads of the other tests are potent.
    url = f"/vsicurl/{canary_server.url}/canary.tif"
    potent = [bodies.vrt_of(str(canary_file)), bodies.vrt_of(url)]
    assert pixels_read(tmp_path, potent) == PIXELS + PIXELS
    assert canary_server.asked


# The command, which a wrong folder ends before it serves.
START = """
sys.argv = ["crossmi-service", "--artifact", "none", "--port", "0"]
from service.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 2
"""
LIST = """
from rasterio.env import Env
with Env() as env:
    print(*env.drivers())
"""


@pytest.mark.parametrize("before", [LIMIT, START])
def test_the_process_of_the_service_has_one_driver(before: str) -> None:
    command = [sys.executable, "-c", f"import sys\n{before}\n{LIST}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["GTiff"]
    if before == START:
        assert done.stderr == (
            "crossmi-service: none is not a folder; an artifact is made by `mimodel train`\n"
        )


def test_a_limited_process_reaches_nothing(
    tmp_path: Path, canary_file: Path, canary_server: CanaryServer
) -> None:
    good = bodies.geotiff_bytes(CANARY, compress="DEFLATE")
    hostile = payloads(canary_file, canary_server)
    assert pixels_read(tmp_path, [*hostile, good], LIMIT) == PIXELS  # the good one's
    assert canary_server.asked == []


def test_the_decoder_reaches_nothing_even_where_gdal_has_all_its_drivers(
    canary_file: Path, canary_server: CanaryServer
) -> None:
    before = canary_file.read_bytes()
    expected = Expected(("B04", "B03", "B02", "B08"), 64, 1, 64 * 64, 1 << 20)
    for payload in payloads(canary_file, canary_server):
        with pytest.raises(MalformedError, match="not a TIFF"):
            decode_patches(payload, TIFF, Declared(scale=0.01), expected)
        # Nor if a TIFF's first bytes stand before it.
        with pytest.raises(MalformedError, match="cannot read"):
            decode_patches(b"II*\0" + payload, TIFF, Declared(scale=0.01), expected)
    assert canary_server.asked == []
    assert canary_file.read_bytes() == before


def payloads(file: Path, server: CanaryServer) -> list[bytes]:
    url = f"/vsicurl/{server.url}/canary.tif"
    return [
        bodies.vrt_of(str(file)),
        bodies.vrt_of(url),
        bodies.raw_vrt_of(str(file)),
        bodies.mrf_of(str(file)),
        bodies.mrf_of(url),
        bodies.wms_of(server.url),
        f"/vsicurl/{server.url}/canary.tif".encode(),
        str(file).encode(),
    ]
