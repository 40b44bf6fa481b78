"""The exclusive stage of Sanchez et al. 2019: what is of one image alone, kept apart from the
shared."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, Self, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mimodel.artifact import Artifact
from mimodel.branches import Branch, side_by_side
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Learnt, Method, Player, RepresentationScale
from mimodel.methods.information import (
    by_artifact,
    otherwise,
    pair_information,
    scaled,
    standardised,
)
from mimodel.networks import (
    Discriminator,
    Encoded,
    Encoder,
    GlobalStatistics,
    Levels,
    LocalStatistics,
)
from mimodel.objectives import (
    AdversarialForm,
    adversarial_term,
    dependence,
    discriminator_loss,
)
from mimodel.parallel import gathered, joint_derangements

_REMEMBERED = 16
"""Steps whose images tell, beside a batch, how far S and E are from independent. Of twice as many
E is so old that the term swings: it rewards what is contrary to what was (docs/design/0012)."""

_RIDGE = 0.1
"""Added to the variances of S, which are 1 on average: axes of less count less."""


@final
class Remembered(nn.Module):
    """S and E of the latest steps, for a term that a batch tells too little of.

    They are buffers, so that a run that goes on remembers what one that was not stopped would.
    """

    def __init__(self, of_s: int, of_e: int) -> None:
        super().__init__()
        self.s: Tensor
        self.e: Tensor
        for name, dimensions in (("s", of_s), ("e", of_e)):
            self.register_buffer(name, torch.empty(0, dimensions))
        self.register_load_state_dict_pre_hook(_with_room)  # type: ignore[no-untyped-call]

    def add(self, s: Float[Tensor, "batch dim"], e: Float[Tensor, "batch own"]) -> None:
        """The rows of a step, of all processes; the oldest make room for them."""
        self.s, self.e = (
            torch.cat([before, new.detach()])[-_REMEMBERED * len(new) :]
            for before, new in ((self.s, s), (self.e, e))
        )

    def dependence(self, s: Float[Tensor, "batch dim"], e: Float[Tensor, "batch own"]) -> Tensor:
        """Of the rows of all processes, beside those remembered; nothing while there are none."""
        if not len(self.s):
            return s.new_zeros(())
        s, e = s.to(self.s.dtype), e.to(self.e.dtype)
        # E changes from step to step, so that its scale is that of the batch; S does not.
        s, other_s = _evened(standardised(s, self.s), standardised(self.s))
        return dependence(s, standardised(e), other_s, standardised(self.e))


def _evened(
    s: Float[Tensor, "batch dim"], among: Float[Tensor, "other dim"]
) -> tuple[Tensor, Tensor]:
    """S with its principal axes of like length, in a batch and in the rows that tell them.

    What S tells lies along axes of very different length: of colored-MNIST's, one has 99 % of the
    variance. A kernel of S as it is sees the longest alone. The ridge keeps those without content
    from being raised to noise.
    """
    with torch.autocast(s.device.type, enabled=False):
        own = among.T @ among / len(among)
    own.diagonal().add_(_RIDGE)
    factor = torch.linalg.cholesky(own)
    both = torch.linalg.solve_triangular(factor, torch.cat([s, among]).T, upper=False).T
    both = both / both[len(s) :].square().mean().sqrt()
    return both[: len(s)], both[len(s) :]


def leading(
    layer: nn.Linear, values: Float[Tensor, "batch dim"], share: float
) -> tuple[Tensor, Tensor, int]:
    """A layer's weight and bias with what it gives projected on its leading principal components,
    and how many these are: as few as hold `share` of the variance of `values`.

    The components are those of standardised dimensions, since that is how E is read. The
    projection is linear, as the layer is, so that it costs an encoder nothing.

    Args:
        layer: the last of an encoder.
        values: what it gave; at least two rows.
        share: of the variance, above 0; 1 keeps all.
    """
    values = values.detach().double()
    mean, deviation = values.mean(0), values.std(0, correction=0).clamp_min(1e-12)
    unit = (values - mean) / deviation
    variances, axes = torch.linalg.eigh(unit.T @ unit)
    held = variances.flip(0).cumsum(0) / variances.sum()
    count = min(int((held < share).sum()) + 1, len(held))
    axes = axes[:, -count:]
    project = (deviation[:, None] * axes) @ (axes.T / deviation)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    moved = project @ weight, mean + project @ (bias - mean)
    return moved[0].to(layer.weight), moved[1].to(layer.bias), count


def _with_room(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Buffers as large as those that are going to be loaded; none were kept before there were
    any."""
    for name, buffer in module.named_buffers():
        kept = state.setdefault(prefix + name, buffer)
        setattr(module, name, buffer.new_empty(kept.shape))


@final
class ExclusiveNetworks(nn.Module):
    """What the exclusive stage learns of one domain, and the frozen shared encoder it reads."""

    def __init__(self, shared: Artifact, representation: int, levels: int | None) -> None:
        super().__init__()
        self.shared = shared
        # A copy: the artifact's own stays on the CPU, and its heads are none of this stage's.
        self.shared_encoder = copy.deepcopy(shared.networks.encoder).requires_grad_(False)
        own = {"representation": representation, "levels": levels}
        spec = shared.spec.encoder.model_copy(update=own)
        channels, height, width = spec.feature_shape
        both = spec.representation + shared.spec.encoder.representation
        self.encoder = Encoder(spec)
        self.global_statistics = GlobalStatistics((2 * channels, height, width), both)
        self.local_statistics = LocalStatistics((2 * channels, height, width), both)
        of_s, of_e = shared.spec.encoder.representation, representation
        self.discriminator = Discriminator(of_s, of_e)
        self.remembered = Remembered(of_s, of_e)

    def train(self, mode: bool = True) -> Self:
        """The shared encoder stays in eval mode: its BatchNorm statistics do not move."""
        super().train(mode)
        self.shared_encoder.eval()
        return self

    def shared_encoded(self, images: Tensor) -> Encoded:
        """C(x) and S of the frozen encoder."""
        with torch.no_grad():
            encoded: Encoded = self.shared_encoder(images)
        return encoded

    @property
    def informing(self) -> Sequence[nn.Module]:
        """Those that raise the information; the discriminator is another player's."""
        return self.encoder, self.global_statistics, self.local_statistics


@final
class ExclusiveStage(Method):
    """Equations 8 to 10 (Tables 4 to 6, 11 to 13, 17 to 19), on frozen shared encoders.

    Two players: the encoders with their statistics networks, which maximise the information of an
    image and R = (S, E) while their (S, E) try to pass for pairs of two images; and the
    discriminators, which tell these from (S, E of another image). The second moves on the
    representations that the first has just made.

    `shared` holds the artifacts of X and Y, or the one of both. All that is named after `form` is
    ours, since the paper does not say; see `mimodel.methods.configs.ExclusiveStageConfig`.
    """

    def __init__(
        self,
        shared: Sequence[Artifact],
        *,
        representation: int,
        alpha: float,
        beta: float,
        adversarial: float,
        form: AdversarialForm,
        discriminator_inputs: RepresentationScale = "as they are",
        discriminator_steps: int = 1,
        discriminator_rate: float | None = None,
        first: Literal["encoder", "discriminator"] = "encoder",
        levels: int | None = None,
        levels_from: float = 0.0,
        independence: float = 0.0,
        variance_kept: float = 1.0,
        negatives: int = 1,
        score_bound: float | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.adversarial, self.form = alpha, beta, adversarial, form
        self._independence = independence
        self._variance_kept = variance_kept
        self._levels_from = levels_from
        self._first, self._negatives, self._score_bound = first, negatives, score_bound
        self._discriminator_inputs = discriminator_inputs
        self._discriminator_steps = discriminator_steps
        self._discriminator_rate = discriminator_rate
        networks = [ExclusiveNetworks(artifact, representation, levels) for artifact in shared]
        self.x = networks[0]
        self.own_y = networks[1] if len(networks) == 2 else None
        self._latest: list[tuple[Tensor, Tensor]] = []

    @property
    def y(self) -> ExclusiveNetworks:
        """The networks of the second image; those of the first where there is one domain."""
        return self.own_y or self.x

    @property
    def _remembers(self) -> bool:
        return self._independence > 0 or self._variance_kept < 1

    @property
    def players(self) -> Sequence[Player]:
        domains = [self.x, self.own_y] if self.own_y else [self.x]
        encoder = Player(
            "encoder",
            [p for one in domains for part in one.informing for p in part.parameters()],
        )
        discriminator = Player(
            "discriminator",
            [p for one in domains for p in one.discriminator.parameters()],
            learning_rate=self._discriminator_rate,
            steps=self._discriminator_steps,
        )
        if self._first == "encoder":
            return encoder, discriminator
        return discriminator, encoder

    def advanced(self, done: float) -> None:
        for module in self.modules():
            if isinstance(module, Levels):
                module.rounding = done >= self._levels_from

    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        if player.name == "discriminator":
            if self._first == "discriminator":
                self._latest = self._represented(batch)
            return {"discriminator": self._discrimination(generator)}
        orders = joint_derangements(len(batch.x), self._negatives, generator).to(batch.x.device)
        of_x, of_y = side_by_side(
            self._half(self.x, batch.x, orders), self._half(self.y, batch.y, orders)
        )
        self._latest = [(s, e.detach()) for s, e in (of_x[3:5], of_y[3:5])]
        global_, local, adversarial = (x + y for x, y in zip(of_x[:3], of_y[:3], strict=True))
        terms = {
            "global": -self.alpha * global_,
            "local": -self.beta * local,
            "adversarial": self.adversarial * adversarial,
        }
        if self._independence:
            terms["dependence"] = self._independence * (of_x[7] + of_y[7])
        if self._remembers:
            (s_x, e_x), (s_y, e_y) = of_x[5:7], of_y[5:7]
            if self.own_y:
                self.x.remembered.add(s_x, e_x)
                self.own_y.remembered.add(s_y, e_y)
            else:
                self.x.remembered.add(torch.cat([s_x, s_y]), torch.cat([e_x, e_y]))
        return terms

    @torch.no_grad()
    def _represented(self, batch: PairBatch) -> list[tuple[Tensor, Tensor]]:
        """S and E of both images as the discriminator sees them, before the encoder has moved."""
        found = []
        for networks, images in ((self.x, batch.x), (self.y, batch.y)):
            both = networks.shared_encoded(images).representation, networks.encoder(images)[1]
            s, e = (scaled(each, self._discriminator_inputs) for each in both)
            found.append((s, e))
        return found

    def _half(self, networks: ExclusiveNetworks, images: Tensor, orders: Tensor) -> Branch:
        """One domain's half of equation 10: its three terms, S and E as the discriminator sees
        them, S and E of all processes where they are remembered, and the term of independence."""

        def half(images: Tensor) -> tuple[Tensor, ...]:
            c_shared, s = networks.shared_encoded(images)
            c_exclusive, e = networks.encoder(images)
            c, r = torch.cat([c_shared, c_exclusive], 1), torch.cat([s, e], 1)
            seen_s, seen_e = (scaled(each, self._discriminator_inputs) for each in (s, e))
            joint = [gathered(each) for each in (s, e)] if self._remembers else []
            return (
                pair_information(networks.global_statistics, c, r, orders, self._score_bound),
                pair_information(networks.local_statistics, c, r, orders, self._score_bound),
                adversarial_term(networks.discriminator(seen_s, seen_e), self.form),
                seen_s,
                seen_e,
                *joint,
                *([networks.remembered.dependence(*joint)] if self._independence else []),
            )

        return Branch(half, (images,), networks.informing)

    def _discrimination(self, generator: Generator) -> Tensor:
        """Both discriminators' cross-entropy; real pairs have the E of another image."""
        first = self._latest[0][0]
        order = joint_derangements(len(first), 1, generator)[0].to(first.device)
        losses = [
            discriminator_loss(
                real=networks.discriminator(s, gathered(e)[order]),
                fake=networks.discriminator(s, e),
            )
            for networks, (s, e) in zip((self.x, self.y), self._latest, strict=True)
        ]
        return losses[0] + losses[1]

    @property
    def description(self) -> dict[str, str]:
        domains = [self.x, self.own_y] if self.own_y else [self.x]
        said = {
            "shared_digest": " ".join(one.shared.representation_digest() for one in domains),
            "adversarial": f"{self.adversarial} {self.form}, discriminator steps "
            f"{self._discriminator_steps}, inputs {self._discriminator_inputs}",
            **otherwise(self._negatives, self._score_bound),
        }
        if self._first == "discriminator":
            said["adversarial"] += ", discriminator first"
        if self._independence:
            said["independence"] = f"{self._independence:g}, beside {_REMEMBERED} steps, S evened"
        if levels := self.x.encoder.spec.levels:
            said["exclusive_levels"] = str(levels)
        if self._levels_from:
            said["exclusive_levels"] += f", from {self._levels_from:g} of the run"
        return said

    def learnt(self) -> Mapping[str, Learnt]:
        return {
            name: _with_exclusive(networks, self._variance_kept)
            for name, networks in by_artifact(self.x, self.own_y).items()
        }


def _with_exclusive(networks: ExclusiveNetworks, variance_kept: float) -> Learnt:
    """The shared artifact's content with the exclusive encoder beside it."""
    spec = networks.shared.spec
    fields = {name: getattr(spec, name) for name in ("encoder", "alpha", "beta", "heads")}
    fields["exclusive_encoder"] = networks.encoder.spec
    fields["representations"] = {
        "shared": spec.encoder.representation,
        "exclusive": networks.encoder.spec.representation,
    }
    encoder, provenance = networks.encoder.state_dict(), {}
    if variance_kept < 1 and len(networks.remembered.e) > 1:
        encoder["output.weight"], encoder["output.bias"], count = leading(
            networks.encoder.output, networks.remembered.e, variance_kept
        )
        dimensions = networks.encoder.spec.representation
        provenance["exclusive_components"] = (
            f"{count} of {dimensions}, with {variance_kept:g} of the variance"
        )
    exclusive = {f"exclusive_encoder.{k}": v for k, v in encoder.items()}
    stage_1 = ("iterations", "batch_size", "seed", "commit")
    provenance |= {f"shared_{name}": spec.provenance.get(name, "unknown") for name in stage_1}
    kept = ("switched", "distance")
    provenance |= {name: spec.provenance[name] for name in kept if name in spec.provenance}
    return Learnt(fields, {**networks.shared.networks.state_dict(), **exclusive}, provenance)
