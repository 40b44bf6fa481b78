"""Small untrained artifacts: the real thing in every way but size and training."""

from pathlib import Path

import torch

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, Networks, save_artifact
from mimodel.networks import ConvSpec, EncoderSpec
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02", "B08")
CLASSES = ("water", "forest", "field")


def small_artifact(
    folder: Path,
    heads: dict[str, HeadSpec],
    exclusive: int | None = None,
    bands: tuple[str, ...] = BANDS,
) -> Artifact:
    """A model that reads 64 x 64 patches of some of the four bands, with few channels.

    `exclusive` is the dimension of an exclusive representation; None leaves it out.
    """
    convolutions = tuple(
        ConvSpec(channels=channels, stride=stride, batch_norm=norm)
        for channels, stride, norm in [(8, 1, False), (8, 2, True), (16, 2, True), (16, 2, True)]
    )
    encoder = EncoderSpec(in_channels=len(bands), image_size=(64, 64), convolutions=convolutions)
    return _untrained(folder, encoder, heads, exclusive=exclusive, bands=bands)


def pixel_artifact(folder: Path) -> Artifact:
    """A model that reads 9 x 9 patches of four bands without a stride, with few channels.

    Its BatchNorm has statistics, and its statistics networks tell patches apart.
    """
    convolutions = tuple(
        ConvSpec(channels=channels, kernel=3, stride=1, batch_norm=norm)
        for channels, norm in [(8, False), (12, True), (16, True)]
    )
    encoder = EncoderSpec(in_channels=4, image_size=(9, 9), convolutions=convolutions)
    return _untrained(folder, encoder, {}, gain=3.0)


def _untrained(
    folder: Path,
    encoder: EncoderSpec,
    heads: dict[str, HeadSpec],
    *,
    exclusive: int | None = None,
    gain: float = 1.0,
    bands: tuple[str, ...] = BANDS,
) -> Artifact:
    other = encoder.model_copy(update={"representation": exclusive}) if exclusive else None
    spec = ArtifactSpec(
        name="untrained",
        encoder=encoder,
        normalisation=Normalisation(
            bands=bands,
            mean=(0.1, 0.11, 0.12, 0.25)[: len(bands)],
            std=(0.05, 0.04, 0.03, 0.1)[: len(bands)],
        ),
        representations={"shared": 64} | ({"exclusive": exclusive} if exclusive else {}),
        exclusive_encoder=other,
        alpha=0.5,
        beta=1.0,
        heads=heads,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = Networks(spec)
        if gain != 1:
            _vary(networks, gain)
    return save_artifact(folder, spec, networks.state_dict(), "# Untrained\n")


@torch.no_grad()
def _vary(networks: Networks, gain: float) -> None:
    for name, values in networks.state_dict().items():
        if name.endswith("running_mean"):
            values.normal_(0, 0.1)
        elif name.endswith("running_var"):
            values.uniform_(0.5, 2)
        elif "statistics" in name:
            values.mul_(gain)
