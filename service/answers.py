"""Answers as bytes: JSON, npy, npz, pictures; each names the model that gave it."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from fastapi import Response
from pydantic import BaseModel

from service.formats import JSON, NPY
from service.schemas import ArtifactName

NPZ = "application/x-npz"


def json_answer(answer: BaseModel, name: ArtifactName) -> Response:
    """A JSON document."""
    return bytes_answer(answer.model_dump_json().encode(), JSON, name)


def npy_answer(
    array: npt.NDArray[np.float32], name: ArtifactName, headers: Mapping[str, str] | None = None
) -> Response:
    """One array as a .npy file."""
    file = BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return bytes_answer(file.getvalue(), NPY, name, headers)


def npz_answer(arrays: Mapping[str, Any], name: ArtifactName) -> Response:
    """Named arrays as a .npz file."""
    file = BytesIO()
    np.savez(file, **arrays)
    return bytes_answer(file.getvalue(), NPZ, name)


def bytes_answer(
    content: bytes, media_type: str, name: ArtifactName, headers: Mapping[str, str] | None = None
) -> Response:
    """Any other content."""
    # A name may have any letters, and a header may not.
    artifact = {"X-Artifact": name.digest, "X-Artifact-Id": quote(name.id)}
    named = {**(headers or {}), **artifact}
    return Response(content, media_type=media_type, headers=named)
