"""An artifact keeps what it was given, and refuses damage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from mimodel.artifact import Artifact, ArtifactSpec, save_artifact
from mimodel.errors import ArtifactError, InputError
from tests.models import BANDS, CLASSES

Patches = npt.NDArray[np.float32]


def test_a_saved_artifact_loads_with_the_same_answers(
    artifact: Artifact, patches: Patches, tmp_path: Path
) -> None:
    again = artifact.save(tmp_path / "copy", "# Copy\n")
    assert again.spec == artifact.spec
    assert again.digest == artifact.digest
    assert np.array_equal(again.embed(patches), artifact.embed(patches))
    assert np.array_equal(again.classify(patches), artifact.classify(patches))


def test_embedding_is_the_encoder_on_normalised_patches(
    artifact: Artifact, patches: Patches
) -> None:
    mean, std = (
        np.array(v, np.float32) for v in ([0.1, 0.11, 0.12, 0.25], [0.05, 0.04, 0.03, 0.1])
    )
    x = torch.from_numpy((patches - mean[:, None, None]) / std[:, None, None])
    expected = artifact.networks.encoder(x).representation.detach().numpy()
    ours = artifact.embed(patches)
    cosine = (
        (ours * expected).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert ours.shape == (5, 64)
    assert cosine.min() > 0.9999


def test_bands_are_found_by_name(artifact: Artifact, patches: Patches) -> None:
    order = ("B11", "B08", "B02", "B04", "B03")
    shuffled = np.zeros((5, 5, 64, 64), np.float32)
    for place, name in enumerate(order):
        if name in BANDS:
            shuffled[:, place] = patches[:, BANDS.index(name)]
    assert np.array_equal(artifact.embed(shuffled, order), artifact.embed(patches))


@pytest.mark.parametrize(
    ("shape", "bands", "says"),
    [
        ((1, 3, 64, 64), None, "expected 4 bands"),
        ((1, 3, 64, 64), ("B04", "B03", "B02"), "B08 is missing"),
        ((1, 4, 64, 64), ("B04", "B04", "B02", "B08"), "twice"),
        ((1, 4, 64, 65), None, r"\(N, band, 64, 64\)"),
        ((4, 64, 64), None, r"got \(4, 64, 64\)"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(
    artifact: Artifact, shape: tuple[int, ...], bands: tuple[str, ...] | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        artifact.embed(np.zeros(shape, np.float32), bands)


def test_infinite_reflectance_is_refused(artifact: Artifact, patches: Patches) -> None:
    bad = patches.copy()
    bad[0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="NaN"):
        artifact.embed(bad)


def test_no_data_counts_as_the_mean_of_its_band(artifact: Artifact, patches: Patches) -> None:
    holes, filled = patches.copy(), patches.copy()
    holes[:, 2, 10:30, 5:50] = np.nan
    filled[:, 2, 10:30, 5:50] = 0.12
    np.testing.assert_allclose(artifact.embed(holes), artifact.embed(filled), atol=1e-5)
    assert np.isfinite(artifact.embed(np.full_like(patches, np.nan))).all()


def test_no_patches_give_no_vectors(artifact: Artifact, patches: Patches) -> None:
    assert artifact.embed(patches[:0]).shape == (0, 64)


def test_probabilities_are_the_softmax_of_the_head(artifact: Artifact, patches: Patches) -> None:
    probabilities = artifact.classify(patches)
    assert probabilities.shape == (5, len(CLASSES))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    logits = artifact.networks.heads["cover"](torch.from_numpy(artifact.embed(patches))).numpy()
    np.testing.assert_allclose(np.diff(np.log(probabilities)), np.diff(logits), atol=1e-4)


def test_an_unknown_head_is_refused_with_the_known_ones(
    artifact: Artifact, patches: Patches
) -> None:
    with pytest.raises(InputError, match="cover"):
        artifact.classify(patches, head="eurosat")


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
@pytest.mark.parametrize("place", [0, 0.3, 0.999])
def test_a_flipped_bit_is_found(folder: Path, name: str, place: float) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged or changed"):
        Artifact.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "SHA256SUMS"])
def test_a_missing_or_cut_file_is_found(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtifactError):
        Artifact.load(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match="not a whole artifact"):
        Artifact.load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        Artifact.load(tmp_path / "nowhere")


def test_another_schema_is_refused(artifact: Artifact, folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    fields = {**json.loads(artifact.spec.model_dump_json()), "schema_version": 99}
    _write(folder, safetensors.torch.save(tensors, {"crossmi": json.dumps(fields)}))
    with pytest.raises(ArtifactError, match="schema version 99"):
        Artifact.load(folder)


def test_of_version_1_all_but_its_score_is_read(artifact: Artifact, folder: Path) -> None:
    """Its out-of-distribution score was one distance of representation and looks together."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors |= {"novelty.mean": torch.zeros(9), "novelty.distances": torch.arange(3.0)}
    fields = json.loads(artifact.spec.model_dump_json()) | {
        "schema_version": 1,
        "novelty": {"fitted_on": 9, "held_out": 3, "distances": 3},
    }
    _write(folder, safetensors.torch.save(tensors, {"crossmi": json.dumps(fields)}))
    found = Artifact.load(folder)
    assert found.spec == artifact.spec
    for name, tensor in artifact.networks.state_dict().items():
        assert torch.equal(found.networks.state_dict()[name], tensor)


def test_a_field_that_this_version_does_not_know_is_refused(
    artifact: Artifact, folder: Path
) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    fields = {**json.loads(artifact.spec.model_dump_json()), "exclusive": True}
    _write(folder, safetensors.torch.save(tensors, {"crossmi": json.dumps(fields)}))
    with pytest.raises(ArtifactError, match="not valid"):
        Artifact.load(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heads": {"h": {"classes": ["a"], "hidden": 4, "representation": "none"}}}, "reads no"),
        ({"heads": {"a.b": {"classes": ["a"], "hidden": 4}}}, "not valid"),
        ({"normalisation": {"bands": ["B04"], "mean": [0], "std": [1]}}, "1 bands for an encoder"),
    ],
)
def test_a_specification_whose_parts_do_not_fit_is_refused(
    artifact: Artifact, folder: Path, changes: dict[str, Any], says: str
) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    fields = {**json.loads(artifact.spec.model_dump_json()), **changes}
    _write(folder, safetensors.torch.save(tensors, {"crossmi": json.dumps(fields)}))
    with pytest.raises(ArtifactError, match=says):
        Artifact.load(folder)


def test_a_stride_of_zero_is_refused(artifact: Artifact, folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    fields = json.loads(artifact.spec.model_dump_json())
    fields["encoder"]["convolutions"][1]["stride"] = 0
    _write(folder, safetensors.torch.save(tensors, {"crossmi": json.dumps(fields)}))
    with pytest.raises(ArtifactError, match="do not fit"):
        Artifact.load(folder)


def test_an_answer_hardly_depends_on_its_neighbours(artifact: Artifact, patches: Patches) -> None:
    together = artifact.embed(patches)
    alone = np.concatenate([artifact.embed(patches[i : i + 1]) for i in range(len(patches))])
    # bfloat16 has eight bits: 2^-8 of the largest activation, some layers deep.
    scale = np.abs(together).max()
    assert np.abs(together - alone).max() < 0.02 * scale


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, safetensors.torch.save({"a": torch.ones(1)})])
def test_a_file_with_right_sums_and_wrong_content_is_refused(folder: Path, data: bytes) -> None:
    _write(folder, data)
    with pytest.raises(ArtifactError):
        Artifact.load(folder)


def test_weights_of_another_shape_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "a", "card")
    state = safetensors.torch.load_file(tmp_path / "a" / "model.safetensors")
    state["encoder.output.weight"] = state["encoder.output.weight"][:32]
    with pytest.raises(ArtifactError, match="do not fit"):
        save_artifact(tmp_path / "b", artifact.spec, state, "card")


def test_the_specification_says_what_the_weights_mean(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    spec = ArtifactSpec.model_validate_json(header["__metadata__"]["crossmi"])
    assert spec.bands == BANDS
    assert spec.heads["cover"].classes == CLASSES


def _write(folder: Path, data: bytes) -> None:
    """Content of model.safetensors with the sums to match."""
    (folder / "model.safetensors").write_bytes(data)
    card = (folder / "README.md").read_bytes()
    (folder / "SHA256SUMS").write_text(
        f"{hashlib.sha256(data).hexdigest()}  model.safetensors\n"
        f"{hashlib.sha256(card).hexdigest()}  README.md\n"
    )
