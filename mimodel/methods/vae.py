"""A variational autoencoder (Kingma and Welling 2014): what the paper compares with on IAM."""

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Learnt, Method, Player
from mimodel.networks import Decoder, Encoder, EncoderSpec
from mimodel.parallel import processes, rows

Likelihood = Literal["bernoulli", "gaussian"]
"""Of pixels that are -1 or 1, or of any pixels with a deviation of 1."""


@final
class VariationalAutoencoder(Method):
    """The encoder of `spec`, with a mean and a log variance for each dimension, and Table 20.

    Both images of a pair are seen; that they belong together is not used. What remains is the
    encoder of the means, which stands where the shared representation does elsewhere.
    """

    def __init__(self, spec: EncoderSpec, *, likelihood: Likelihood) -> None:
        super().__init__()
        self.spec = spec
        self._likelihood = likelihood
        both = spec.model_copy(update={"representation": 2 * spec.representation})
        self.encoder = Encoder(both)
        self.decoder = Decoder(spec.representation, spec.in_channels, spec.image_size)

    @property
    def players(self) -> Sequence[Player]:
        return (Player("vae", list(self.parameters())),)

    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.y])
        mean, log_variance = self.encoder(images).representation.chunk(2, 1)
        joint = len(batch.x) * processes()
        noise = torch.randn(2, joint, mean.shape[1], generator=generator)[:, rows(joint)]
        noise = noise.flatten(0, 1).to(mean)
        decoded = self.decoder(mean + noise * (log_variance / 2).exp())
        return {
            "reconstruction": self._reconstruction(decoded.float(), images),
            "divergence": divergence_from_normal(mean, log_variance),
        }

    def _reconstruction(self, decoded: Tensor, images: Tensor) -> Tensor:
        """-log p(x | z), up to a constant, in nats an image."""
        if self._likelihood == "bernoulli":
            loss = binary_cross_entropy_with_logits(decoded, (images + 1) / 2, reduction="sum")
        else:
            loss = mse_loss(decoded, images, reduction="sum") / 2
        return loss / len(images)

    @property
    def description(self) -> dict[str, str]:
        return {"likelihood": self._likelihood}

    def learnt(self) -> Mapping[str, Learnt]:
        state = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        for name in ("encoder.output.weight", "encoder.output.bias"):
            state[name] = state[name][: self.spec.representation]
        fields = {
            "encoder": self.spec,
            "representations": {"shared": self.spec.representation},
        }
        return {"artifact": Learnt(fields, state, {"method": "variational autoencoder"})}


def divergence_from_normal(
    mean: Float[Tensor, "batch dim"], log_variance: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """KL(N(mean, variance) || N(0, 1)) in nats, the mean over the batch (their appendix B)."""
    each = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return each.mean()
