"""The variational autoencoder: Table 20, its bound against closed forms, and its artifact."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from mimodel.artifact import Artifact, ArtifactSpec, save_artifact
from mimodel.data.pairs import PairBatch
from mimodel.errors import ConfigError, InputError
from mimodel.methods.vae import Likelihood, VariationalAutoencoder, divergence_from_normal
from mimodel.networks import ConvSpec, Decoder, EncoderSpec
from mimodel.normalisation import Normalisation
from mimodel.parallel import BatchNorm
from mimodel.similarity import similarity_map

SPEC = EncoderSpec(
    in_channels=1,
    image_size=(16, 16),
    convolutions=(
        ConvSpec(channels=4, stride=2, batch_norm=False),
        ConvSpec(channels=8, kernel=3),
    ),
    representation=3,
)


def test_the_decoder_is_table_20() -> None:
    """Shapes typed from the supplement."""
    with torch.device("meta"):
        decoder = Decoder(128, 1, (64, 256))
        assert decoder.dense.out_features == 131072 == math.prod((8, 32, 512))
        maps = decoder.dense(torch.zeros(1, 128)).unflatten(1, (512, 8, 32))
        seen, kernels = [], []
        for layer in decoder.deconvolutions:
            maps = layer(maps)
            if isinstance(layer, nn.ConvTranspose2d):
                seen.append(tuple(maps.shape[1:]))
                kernels.append((layer.kernel_size, layer.stride))
        image = decoder(torch.zeros(1, 128))
    normalised = [BatchNorm, nn.LeakyReLU]
    kinds = [type(layer) for layer in decoder.deconvolutions]
    doubled = [nn.ConvTranspose2d, *normalised]
    assert kinds == [*normalised, *doubled, *doubled, *doubled, nn.ConvTranspose2d]
    slopes = {one.negative_slope for one in decoder.modules() if isinstance(one, nn.LeakyReLU)}
    assert slopes == {0.2}
    assert seen[:3] == [(256, 16, 64), (128, 32, 128), (64, 64, 256)]
    assert kernels == [((4, 4), (2, 2))] * 3 + [((4, 4), (1, 1))]
    assert image.shape == (1, 1, 64, 256)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_objective_is_the_negative_evidence_bound(likelihood: Likelihood) -> None:
    torch.manual_seed(0)
    method = VariationalAutoencoder(SPEC, likelihood=likelihood).eval()
    images = torch.randint(2, (4, 1, 16, 16)).float() * 2 - 1
    batch = PairBatch(images[:2], images[2:])
    terms = method.objective(method.players[0], batch, Generator().manual_seed(3))

    mean, log_variance = method.encoder(images).representation.chunk(2, 1)
    noise = torch.randn(2, 2, 3, generator=Generator().manual_seed(3)).flatten(0, 1)
    deviation = (log_variance / 2).exp()
    decoded = method.decoder(mean + noise * deviation)
    if likelihood == "bernoulli":
        found = -Bernoulli(logits=decoded).log_prob((images + 1) / 2).flatten(1).sum(1).mean()
    else:
        constant = 256 * 0.5 * math.log(2 * math.pi)
        found = -Normal(decoded, 1).log_prob(images).flatten(1).sum(1).mean() - constant
    torch.testing.assert_close(terms["reconstruction"], found)
    apart = kl_divergence(Normal(mean, deviation), Normal(0, 1)).sum(1).mean()
    torch.testing.assert_close(terms["divergence"], apart)
    nothing = divergence_from_normal(torch.zeros(2, 3), torch.zeros(2, 3))
    assert float(nothing) == 0


def test_what_remains_is_the_encoder_of_the_means(tmp_path: Path) -> None:
    torch.manual_seed(1)
    method = VariationalAutoencoder(SPEC, likelihood="gaussian").eval()
    learnt = method.learnt()["artifact"]
    spec = ArtifactSpec(
        name="vae",
        normalisation=Normalisation(bands=("grey",), mean=(0,), std=(1,)),
        **learnt.fields,
    )
    artifact = save_artifact(tmp_path / "artifact", spec, learnt.state, "# VAE\n")
    images = np.random.default_rng(0).normal(size=(5, 1, 16, 16)).astype(np.float32)
    mean, _ = method.encoder(torch.from_numpy(images)).representation.chunk(2, 1)
    given = Artifact.load(tmp_path / "artifact").embed(images)
    torch.testing.assert_close(torch.from_numpy(given), mean.detach(), atol=2e-2, rtol=2e-2)
    with pytest.raises(InputError, match="no statistics networks and so no similarity"):
        similarity_map(artifact, images[0], (3, 3))


def test_sides_that_the_table_cannot_make_are_refused() -> None:
    from mimodel.methods.configs import VaeConfig

    with pytest.raises(ConfigError, match="28 x 28"):
        VaeConfig(name="vae").build(3, (28, 28))
