"""A small untrained artifact: the real thing in every way but size and training."""

from pathlib import Path

import torch

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, Networks, save_artifact
from mimodel.networks import ConvSpec, EncoderSpec
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02", "B08")
CLASSES = ("water", "forest", "field")


def small_artifact(
    folder: Path, heads: dict[str, HeadSpec], exclusive: int | None = None
) -> Artifact:
    """An untrained model that reads 64 x 64 patches of four bands, with few channels.

    `exclusive` is the dimension of an exclusive representation; None leaves it out.
    """
    convolutions = tuple(
        ConvSpec(channels=channels, stride=stride, batch_norm=norm)
        for channels, stride, norm in [(8, 1, False), (8, 2, True), (16, 2, True), (16, 2, True)]
    )
    encoder = EncoderSpec(in_channels=4, image_size=(64, 64), convolutions=convolutions)
    other = encoder.model_copy(update={"representation": exclusive}) if exclusive else None
    spec = ArtifactSpec(
        name="untrained",
        encoder=encoder,
        normalisation=Normalisation(
            bands=BANDS, mean=(0.1, 0.11, 0.12, 0.25), std=(0.05, 0.04, 0.03, 0.1)
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
    return save_artifact(folder, spec, networks.state_dict(), "# Untrained\n")
