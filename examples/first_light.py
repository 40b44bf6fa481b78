"""Start the service on an artifact, ask it everything it answers over HTTP, and stop it.

    python examples/first_light.py --artifact demo/run/artifact --cube demo/cube.zarr --out pictures

Its pixels are a test region of the cube; it leaves similarity.png in the folder of pictures.
"""

import argparse
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import matplotlib
import numpy as np
import numpy.typing as npt

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from mimodel.data.sentinel2 import mosaic
from mimodel.normalisation import select_bands
from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube, open_cube

Image = npt.NDArray[np.float32]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name in ("--artifact", "--cube", "--out"):
        options.add_argument(name, type=Path, required=True)
    asked = options.parse_args()
    cube = open_cube(asked.cube)
    bands = {"bands": ",".join(cube.bands)}
    test = np.flatnonzero(cube.split == "test")
    date = int(cube.valid_fraction[test].sum(0).argmax())
    patches = reflectance_from_stored(cube.read(test[:8])[:, date])
    ground = mosaic(cube)
    if ground is None:
        raise SystemExit("no patch of the cube has all its pixels at any date")
    image = reflectance_from_stored(ground.stored)

    with _service(asked.artifact) as client:
        print("ready:", client.get("/readyz").json())
        answer = client.post("/embed", params=bands, **_npy(patches)).raise_for_status().json()
        shared = np.array(answer["shared"], np.float32)
        artifact = Artifact.load(asked.artifact)
        in_process = embedder(artifact, "shared", Backend.FOLDED)(
            select_bands(artifact.spec.bands, cube.bands, patches, axis=1)
        )
        difference = np.abs(shared - in_process).max()
        print(f"/embed: {shared.shape}, largest difference to embedding in process {difference}")

        answer = client.post("/classify", params=bands, **_npy(patches)).raise_for_status().json()
        for row in np.array(answer["probabilities"])[:3]:
            best = int(row.argmax())
            print(f"/classify: {answer['classes'][best]} ({row[best]:.0%})")

        row, col = image.shape[1] // 2, image.shape[2] // 2
        wanted = {"Accept": "application/x-npy"}
        body = client.post(
            "/similarity",
            params={**bands, "row": row, "col": col},
            timeout=600,
            **_npy(image, wanted),
        ).raise_for_status()
        likeness = np.load(io.BytesIO(body.content), allow_pickle=False)
        print(f"/similarity: a map of {likeness.shape} pixels for the query ({row}, {col})")
    _draw(cube, image, likeness, (row, col), asked.out / "similarity.png")


def _npy(array: Image, headers: dict[str, str] | None = None) -> dict[str, object]:
    """A request's body and headers."""
    body = io.BytesIO()
    np.save(body, array)
    return {
        "content": body.getvalue(),
        "headers": {"Content-Type": "application/x-npy", **(headers or {})},
    }


@contextmanager
def _service(artifact: Path) -> Iterator[httpx.Client]:
    """The service on a free port of loopback, until the end of the block."""
    command = [str(Path(sys.executable).with_name("crossmi-service"))]
    command += ["--artifact", str(artifact), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"the service did not start: {line or 'it printed nothing'}")
        print("service:", line.strip())
        with httpx.Client(base_url=found.group(), timeout=120, trust_env=False) as client:
            while client.get("/readyz").status_code != httpx.codes.OK:
                time.sleep(0.2)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        print("service: stopped")


def _draw(cube: Cube, image: Image, likeness: Image, query: tuple[int, int], file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = [cube.bands.index(name) for name in ("B04", "B03", "B02")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4))
    left.imshow(np.clip(image[colours].transpose(1, 2, 0) / 0.25, 0, 1))
    left.set_title("true colour")
    shown = right.imshow(likeness, cmap="viridis")
    right.set_title("mutual-information similarity (eq. 5)")
    figure.colorbar(shown, ax=right, shrink=0.8)
    for axis in (left, right):
        axis.plot(query[1], query[0], "o", ms=8, mfc="none", mec="red", mew=2)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    print(f"{file}: the map beside the image, the query pixel in red")


if __name__ == "__main__":
    main()
