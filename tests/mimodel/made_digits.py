"""MNIST's four files with made digits: their pixels say class and row."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from mimodel.data import mnist


def write_digits(folder: Path, monkeypatch: pytest.MonkeyPatch, per_class: int = 6) -> Path:
    """`per_class` training images of each digit, two for testing; the reader expects them."""
    digests = {}
    for split, count in (("train", per_class), ("t10k", 2)):
        classes = np.repeat(np.arange(10, dtype=np.uint8), count)
        label = np.random.default_rng(1).permutation(classes)
        grey = np.zeros((len(label), 28, 28), np.uint8)
        grey[:, 4:24, 4:24] = (10 * label + 60)[:, None, None]
        grey[:, 10, 10] = np.arange(len(label))
        bodies = {
            f"{split}-images-idx3-ubyte": struct.pack(">4i", 2051, len(label), 28, 28)
            + grey.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">2i", 2049, len(label)) + label.tobytes(),
        }
        for name, body in bodies.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(body))
            digests[name] = hashlib.md5(body, usedforsecurity=False).hexdigest()
    # In place: who has imported the mapping sees it too.
    for name, digest in digests.items():
        monkeypatch.setitem(mnist.FILES, name, digest)
    return folder
