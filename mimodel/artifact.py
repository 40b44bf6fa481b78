"""A trained model as a folder that anyone can load: weights, what they mean, and checksums.

    artifact/model.safetensors   weights; the specification is JSON in its metadata
    artifact/README.md           the model card
    artifact/SHA256SUMS          of both

No pickle is read or written. Pixels come in as reflectance; the artifact selects bands by name and
normalises, so that its users cannot do it differently.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, final

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from mimodel.errors import ArtifactError, InputError
from mimodel.networks import (
    Classifier,
    Encoded,
    Encoder,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
    inference_dtype,
)
from mimodel.normalisation import Normalisation, select_bands
from mimodel.novelty import Described, Novelty, NoveltySpec, looks

SCHEMA_VERSION = 2
_WITHOUT_THIS_NOVELTY = 1
"""The version before had a score of another form. It is left out; the rest is the same."""
_MODEL, _CARD, _SUMS = "model.safetensors", "README.md", "SHA256SUMS"
_METADATA_KEY = "crossmi"
_CHUNK = 32
"""Images an eager forward pass takes at a time; larger ones fall out of the cache."""

Reflectance = npt.NDArray[np.floating]


class HeadSpec(BaseModel):
    """A classifier of Table 7 on a representation: its class names and its hidden width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    hidden: int
    representation: str = "shared"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Logits are divided by it, so that probabilities are as often right as they say."""


_HeadName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""A head's name is part of the names of its tensors, so it holds no dot."""


class ArtifactSpec(BaseModel):
    """What the weights mean. Unknown fields are refused: they would be meaning that is lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    encoder: EncoderSpec
    normalisation: Normalisation
    representations: dict[str, int]
    """Names and dimensions of what `Artifact.embed` gives."""
    exclusive_encoder: EncoderSpec | None = None
    """The second stage's, where there was one."""
    alpha: float | None = None
    """Weight of the global terms of equation 5, in training and in similarity alike. None, as is
    `beta`, where no statistics networks were learnt: such a model gives no similarity."""
    beta: float | None = None
    """Weight of the local terms."""
    heads: dict[_HeadName, HeadSpec] = {}
    novelty: NoveltySpec | None = None
    """The out-of-distribution score, where it was fitted."""
    provenance: dict[str, str] = {}
    """Where it comes from: data and its digest, commit, iterations, versions."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "ArtifactSpec":
        if len(self.bands) != self.encoder.in_channels:
            raise ValueError(
                f"{len(self.bands)} bands for an encoder of {self.encoder.in_channels} channels"
            )
        encoders = {"shared": self.encoder}
        if self.exclusive_encoder:
            encoders["exclusive"] = self.exclusive_encoder
        if (self.alpha is None) != (self.beta is None):
            raise ValueError("alpha and beta stand together, with the statistics networks")
        if self.representations != {n: e.representation for n, e in encoders.items()}:
            raise ValueError(
                f"representations {self.representations} of encoders that give "
                + ", ".join(f"{name} ({e.representation})" for name, e in encoders.items())
            )
        if len({(e.in_channels, e.image_size) for e in encoders.values()}) > 1:
            raise ValueError("the two encoders read images of different shapes")
        for name, head in self.heads.items():
            if head.representation not in self.representations:
                raise ValueError(f"the head {name!r} reads no representation that is there")
        return self

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that the encoder reads, in its order."""
        return self.normalisation.bands

    @property
    def patch_size(self) -> int:
        """Side of the square patch that the encoder reads, in pixels; `ArtifactError` where it
        reads none, such as images of words."""
        height, width = self.encoder.image_size
        if height != width:
            raise ArtifactError(
                f"{self.name} reads images of {height} x {width} pixels, and not square patches"
            )
        return height


@final
class Networks(nn.Module):
    """The modules of an artifact under the names that its tensors carry."""

    def __init__(self, spec: ArtifactSpec) -> None:
        super().__init__()
        features, dimension = spec.encoder.feature_shape, spec.encoder.representation
        self.encoder = Encoder(spec.encoder)
        statistics = spec.alpha is not None
        self.global_statistics = GlobalStatistics(features, dimension) if statistics else None
        self.local_statistics = LocalStatistics(features, dimension) if statistics else None
        self.exclusive_encoder = Encoder(spec.exclusive_encoder) if spec.exclusive_encoder else None
        self.novelty = Novelty(spec.novelty, dimension, len(spec.bands)) if spec.novelty else None
        self.heads = nn.ModuleDict(
            {
                name: Classifier(
                    spec.representations[head.representation], len(head.classes), head.hidden
                )
                for name, head in spec.heads.items()
            }
        )


@final
@dataclass(frozen=True, eq=False)
class Artifact:
    """Frozen networks with their specification, ready to embed, classify and compare."""

    spec: ArtifactSpec
    digest: str
    """SHA-256 of model.safetensors, hexadecimal."""
    networks: Networks

    @property
    def id(self) -> str:
        """Short name: the run's name and the beginning of the digest."""
        return f"{self.spec.name}-{self.digest[:12]}"

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and verify an artifact; every kind of damage is an `ArtifactError`."""
        data = _verified_bytes(folder)
        try:
            header = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + header])["__metadata__"]
            text = metadata[_METADATA_KEY]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder / _MODEL} holds no crossmi specification") from error
        spec = _parse_spec(folder, text)
        try:
            networks = Networks(spec)
            networks.load_state_dict(
                {
                    name: tensor
                    for name, tensor in safetensors.torch.load(data).items()
                    if spec.novelty is not None or not name.startswith("novelty.")
                }
            )
        except (SafetensorError, RuntimeError, ValueError, ArithmeticError) as error:
            raise ArtifactError(
                f"the weights in {folder} do not fit their specification"
            ) from error
        return cls(spec, hashlib.sha256(data).hexdigest(), frozen(networks))

    def embed(
        self,
        reflectance: Reflectance,
        bands: Sequence[str] | None = None,
        representation: str = "shared",
    ) -> npt.NDArray[np.float32]:
        """Representations (N, dim) of patches (N, band, 64, 64) of reflectance.

        NaN is no data and counts as its band's mean. `bands` names the bands given, in any order;
        None says they are the artifact's. Patches that do not fit are an `InputError`.

        Where the processor multiplies bfloat16 natively, the layers compute in it: the third digit
        of a vector may depend on the processor and on how many patches come in one call.
        """
        self.check_representation(representation)
        images = self.network_input(reflectance, bands)
        return np.concatenate(
            [np.zeros((0, self.spec.representations[representation]), np.float32)]
            + [
                self.encode(images[start : start + _CHUNK], representation)
                .representation.float()
                .numpy()
                for start in range(0, len(images), _CHUNK)
            ]
        )

    def classify(
        self,
        reflectance: Reflectance,
        bands: Sequence[str] | None = None,
        head: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Class probabilities (N, class) of patches, by the named head or the only one."""
        name = self.head_name(head)
        return self.probabilities(
            self.embed(reflectance, bands, self.spec.heads[name].representation), name
        )

    def probabilities(self, vectors: npt.NDArray[np.float32], head: str) -> npt.NDArray[np.float32]:
        """Class probabilities (N, class) of vectors (N, dim) of the representation that the head
        reads."""
        with torch.inference_mode():
            logits = self.networks.heads[head](torch.from_numpy(vectors))
            scaled = logits / self.spec.heads[head].temperature
            return cast(npt.NDArray[np.float32], scaled.softmax(1).numpy())

    def out_of_distribution(
        self, shared: npt.NDArray[np.float32], reflectance: Reflectance
    ) -> npt.NDArray[np.float32] | None:
        """How unlike the training data patches are: the share of held-out ones that are less so.

        Takes the patches (N, band, row, col), bands as the artifact has them, and their shared
        representations (N, dim). None where it was not fitted (`mimodel probe` does it).
        """
        if self.networks.novelty is None:
            return None
        with torch.inference_mode():
            scores = self.networks.novelty(self.described(shared, reflectance))
            return cast(npt.NDArray[np.float32], scores.numpy())

    def described(self, shared: npt.NDArray[np.float32], reflectance: Reflectance) -> Described:
        """What the out-of-distribution score sees of patches: representation and looks."""
        parts = range(0, len(shared), _CHUNK)
        seen = [looks(self.network_input(reflectance[at : at + _CHUNK], None)) for at in parts]
        return Described(torch.from_numpy(shared), torch.cat(seen))

    def head_name(self, head: str | None = None) -> str:
        """The name of the head to use: the one asked for, or the only one there is."""
        heads = self.spec.heads
        names = ", ".join(sorted(heads)) or "none"
        if head is None and len(heads) == 1:
            return next(iter(heads))
        if head is None or head not in heads:
            raise InputError(
                # The name may be a stranger's, and no error of the service says such words again.
                f"this model has no such head; it has: {names}"
                if head
                else f"say which head to classify with; this model has: {names}"
            )
        return head

    def check_representation(self, name: str) -> None:
        """`InputError` if the model has none of that name."""
        if name not in self.spec.representations:
            raise InputError(
                f"this model has no representation {name!r}; it has: "
                + ", ".join(self.spec.representations)
            )

    def network_input(self, reflectance: Reflectance, bands: Sequence[str] | None) -> Tensor:
        """Normalised patches (N, band, row, col) in the encoder's memory layout, checked."""
        height, width = self.spec.encoder.image_size
        if reflectance.ndim != 4 or reflectance.shape[2:] != (height, width):
            raise InputError(
                f"expected patches of shape (N, band, {height}, {width}), got {reflectance.shape}"
            )
        chosen = select_bands(self.spec.bands, bands, reflectance, axis=1)
        if np.isinf(chosen).any():
            raise InputError("reflectance is infinite somewhere; mark missing pixels as NaN")
        images = torch.from_numpy(self.spec.normalisation(cast(Reflectance, chosen)))
        return images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(self, images: Tensor, representation: str = "shared") -> Encoded:
        """Feature maps and representations of normalised patches, on the CPU."""
        encoder = self.networks.encoder
        if representation == "exclusive" and self.networks.exclusive_encoder is not None:
            encoder = self.networks.exclusive_encoder
        with inference_autocast():
            encoded: Encoded = encoder(images)
            return encoded

    def representation_digest(self, representation: str = "shared") -> str:
        """SHA-256 of what makes a representation; heads and names do not count."""
        encoder = self.networks.encoder
        if representation == "exclusive" and self.networks.exclusive_encoder is not None:
            encoder = self.networks.exclusive_encoder
        digest = hashlib.sha256(self.spec.normalisation.model_dump_json().encode())
        digest.update(f"{encoder.spec.levels} levels".encode() if encoder.spec.levels else b"")
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, card: str) -> "Artifact":
        """Write the artifact with `card` as its model card; `folder` is replaced as a whole."""
        return save_artifact(folder, self.spec, self.networks.state_dict(), card)


def save_artifact(
    folder: Path, spec: ArtifactSpec, state: Mapping[str, Tensor], card: str
) -> Artifact:
    """Write weights under the names that they have in `Networks`.

    The folder appears complete or not at all. One that is there is replaced; a kill between the two
    renames leaves it beside, under a name that ends in `.replaced`.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = safetensors.torch.save(weights, {_METADATA_KEY: spec.model_dump_json()})
    files = {_MODEL: data, _CARD: card.encode()}
    sums = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name, body in {**files, _SUMS: sums.encode()}.items():
        with (building / name).open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    if folder.exists():
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
        building.rename(folder)
        shutil.rmtree(replaced)
    else:
        building.rename(folder)
    return Artifact.load(folder)


def run_artifacts(run: Path) -> tuple[Artifact, ...]:
    """What a finished run has left: the artifact of both images of a pair, or X's and Y's."""
    for names in (("artifact",), ("artifact-x", "artifact-y")):
        if all((run / name).exists() for name in names):
            return tuple(Artifact.load(run / name) for name in names)
    raise ArtifactError(
        f"{run} holds no artifact of a finished run; expected the folder that "
        "`mimodel train --out` named"
    )


def frozen(networks: Networks) -> Networks:
    """The networks as they are served: in eval mode, without gradients, convolutions fast."""
    networks.eval().requires_grad_(False)
    networks.encoder.to(memory_format=torch.channels_last)
    if networks.exclusive_encoder is not None:
        networks.exclusive_encoder.to(memory_format=torch.channels_last)
    return networks


def inference_autocast() -> torch.autocast:
    """The arithmetic of every frozen network on the CPU: bfloat16 where the processor has it."""
    dtype = inference_dtype(torch.device("cpu"))
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def _verified_bytes(folder: Path) -> bytes:
    """Content of model.safetensors, after every file of SHA256SUMS was compared with its digest."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; an artifact is made by `mimodel train`")
    try:
        sums = (folder / _SUMS).read_text().splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in sums)}
        contents = {name: (folder / name).read_bytes() for name in (_MODEL, _CARD)}
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder} is not a whole artifact ({error}); it holds {_MODEL}, {_CARD} and {_SUMS}"
        ) from error
    for name, body in contents.items():
        if expected.get(name) != hashlib.sha256(body).hexdigest():
            raise ArtifactError(
                f"{folder / name} does not have the digest that {_SUMS} states: it was damaged or "
                "changed; copy the artifact again or train it anew"
            )
    return contents[_MODEL]


def _parse_spec(folder: Path, text: str) -> ArtifactSpec:
    try:
        fields: Any = json.loads(text)
        version = fields.get("schema_version")
        if version == _WITHOUT_THIS_NOVELTY:
            fields = {**fields, "schema_version": SCHEMA_VERSION, "novelty": None}
        elif version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{folder} has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
                "use the version of crossmi that made it, or train anew"
            )
        return ArtifactSpec.model_validate(fields)
    except (ValidationError, AttributeError, ValueError) as error:
        raise ArtifactError(f"the specification in {folder} is not valid: {error}") from error
