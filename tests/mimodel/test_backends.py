"""Every backend gives the vectors of eager float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact, ArtifactSpec, Networks, frozen
from mimodel.backends import Backend, embedder, fold_batch_norm
from mimodel.networks import Encoder, EncoderSpec
from mimodel.normalisation import Normalisation
from tests.models import BANDS


@pytest.fixture(scope="module")
def model() -> Artifact:
    """Table 8 with BatchNorm statistics that are not those of a fresh layer."""
    spec = ArtifactSpec(
        name="table-8",
        encoder=EncoderSpec.for_images(4),
        normalisation=Normalisation(bands=BANDS, mean=(0.1,) * 4, std=(0.05,) * 4),
        representations={"shared": 64, "exclusive": 64},
        exclusive_encoder=EncoderSpec.for_images(4),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = Networks(spec)
        for module in networks.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 2)
                torch.nn.init.normal_(module.bias)
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return Artifact(spec, "0" * 64, frozen(networks))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(9, 4, 64, 64)), -1).cumsum(-2)
    smooth -= smooth.min((2, 3), keepdims=True)
    reflectance = (0.4 * smooth / smooth.max((2, 3), keepdims=True)).astype(np.float32)
    reflectance[3, :, :9] = np.nan
    return reflectance


def eager_float32(model: Artifact, encoder: Encoder, patches: np.ndarray) -> np.ndarray:
    plain = Encoder(encoder.spec).eval()
    plain.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        images = torch.from_numpy(model.spec.normalisation(patches))
        return plain(images).representation.numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.mark.parametrize("backend", list(Backend))
@pytest.mark.parametrize(
    "representation", ["shared", pytest.param("exclusive", marks=pytest.mark.slow)]
)
def test_vectors_are_those_of_eager_float32(
    model: Artifact,
    patches: np.ndarray,
    backend: Backend,
    representation: str,
    empty_cache: Path,
) -> None:
    if backend in (Backend.ONNXRUNTIME, Backend.OPENVINO):
        pytest.importorskip(backend.value)
    embed = embedder(model, representation, backend)
    found = embed(patches)
    networks = model.networks
    encoder = networks.encoder if representation == "shared" else networks.exclusive_encoder
    assert encoder is not None
    expected = eager_float32(model, encoder, patches)
    assert found.dtype == np.float32
    assert cosine(found, expected) >= 0.9999
    # A cosine forgives a length; these are in proportion too.
    assert np.abs(np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1) - 1).max() < 0.01
    if kept := list(empty_cache.glob("crossmi/*")):
        # What is kept of the export gives the same bits, and is not made again.
        (file,) = kept
        written = file.stat()
        assert embedder(model, representation, backend)(patches).tobytes() == found.tobytes()
        assert file.stat().st_mtime_ns == written.st_mtime_ns
    assert bool(kept) == (backend in (Backend.ONNXRUNTIME, Backend.OPENVINO))
    # Neighbours in a batch do not matter, beyond the arithmetic.
    alone = np.concatenate([embed(one[None]) for one in patches])
    assert cosine(alone, found) >= 0.9999


def test_folding_is_exact_arithmetic(model: Artifact) -> None:
    encoder = Encoder(model.spec.encoder).double().eval()
    encoder.load_state_dict(model.networks.encoder.state_dict())
    images = torch.randn(2, 4, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = encoder.convolutions(images)
        torch.testing.assert_close(fold_batch_norm(encoder)(images), expected, rtol=1e-9, atol=1e-9)
