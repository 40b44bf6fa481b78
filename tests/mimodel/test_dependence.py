"""The criterion of independence: its definition over quadruples, and what it is for."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from mimodel.data.pairs import PairBatch
from mimodel.methods.configs import ExclusiveStageConfig
from mimodel.methods.exclusive import ExclusiveStage, Remembered
from mimodel.objectives import dependence
from tests.mimodel.test_exclusive import make_shared


def _by_quadruples(s: Tensor, e: Tensor, other_s: Tensor, other_e: Tensor) -> Tensor:
    """The criterion's definition (Gretton et al. 2005, lemma 1) over two samples of a batch and two
    others: what (S, E) of one and of another have in common beyond what S and E of different ones
    have."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        apart = ((one - other) ** 2).mean()
        return (torch.exp(-apart / 2) + torch.exp(-4 * apart)) / 2

    terms = [
        kernel(s[i], other_s[j])
        * (
            kernel(e[i], other_e[j])
            + kernel(e[p], other_e[q])
            - kernel(e[p], other_e[j])
            - kernel(e[i], other_e[q])
        )
        for i, p in permutations(range(len(s)), 2)
        for j, q in permutations(range(len(other_s)), 2)
    ]
    return torch.stack(terms).mean()


def _stage(folder: Path, domains: int = 2) -> ExclusiveStage:
    shared = [make_shared(folder / str(domain), domain) for domain in range(domains)]
    torch.manual_seed(11)
    stage = ExclusiveStage(
        shared,
        representation=3,
        alpha=0.5,
        beta=1.0,
        adversarial=0.05,
        form="non-saturating",
        independence=7.0,
    )
    return stage.double().train()


def _batch(step: int) -> PairBatch:
    torch.manual_seed(step)
    return PairBatch(*torch.randn(2, 5, 2, 16, 16, dtype=torch.float64))


def _unit(values: Tensor, among: Tensor) -> Tensor:
    return (values - among.mean(0)) / (among.std(0, correction=0) + 1e-5)


def _evened(s: Tensor, among: Tensor) -> Tensor:
    """Along the principal axes of `among`, each divided by its deviation, with a ridge of a tenth
    of the mean variance; a mean square of 1."""
    unit, known = _unit(s, among), _unit(among, among)
    variances, axes = torch.linalg.eigh(known.T.cov(correction=0))
    lengths = (variances + 0.1).sqrt()
    return (unit @ axes / lengths) / (known @ axes / lengths).square().mean().sqrt()


def test_it_is_the_mean_over_quadruples_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    s, e = torch.randn(5, 3).double().requires_grad_(), torch.randn(5, 2).double().requires_grad_()
    others = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    ours, theirs = dependence(s, e, *others), _by_quadruples(s, e, *others)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    for one, other in zip(
        torch.autograd.grad(ours, [s, e]), torch.autograd.grad(theirs, [s, e]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_it_is_nothing_on_average_of_independent_draws_and_not_of_uncorrelated_ones() -> None:
    generator = Generator().manual_seed(0)
    independent, uncorrelated = [], []
    for _ in range(400):
        s, other = torch.randn(2, 96, 1, generator=generator)
        of_s = (s**2 - 1) / 2**0.5
        independent.append(dependence(s[:32], other[:32], s[32:], other[32:]))
        uncorrelated.append(dependence(s[:32], of_s[:32], s[32:], of_s[32:]))
    of_independent, of_uncorrelated = torch.stack(independent), torch.stack(uncorrelated)
    error = of_independent.std() / 20
    assert of_independent.mean().abs() < 3 * error
    assert of_uncorrelated.mean() > 30 * error


def test_the_precision_of_a_mixed_run_does_not_reach_it() -> None:
    torch.manual_seed(1)
    given = [torch.randn(8, 3), torch.randn(8, 2), torch.randn(20, 3), torch.randn(20, 2)]
    plain = dependence(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(dependence(*given), plain, rtol=0, atol=0)


def test_it_stands_beside_the_adversary_with_its_weight(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    seen: list[list[tuple[Tensor, Tensor]]] = []
    for step in range(2):
        terms = stage.objective(stage.players[0], _batch(step), Generator().manual_seed(4))
        seen.append([])
        for networks, images in ((stage.x, _batch(step).x), (stage.y, _batch(step).y)):
            s = networks.shared_encoder.eval()(images).representation
            seen[-1].append((s, networks.encoder(images).representation))
        if step == 0:
            assert terms["dependence"] == 0  # nothing is remembered
    expected = torch.zeros((), dtype=torch.float64)
    for (old_s, old_e), (s, e) in zip(*seen, strict=True):
        before = old_s, old_e.detach()
        unit = _evened(s, old_s), _unit(e, e), _evened(old_s, old_s), _unit(before[1], before[1])
        expected = expected + 7 * _by_quadruples(*unit)
    torch.testing.assert_close(terms["dependence"], expected, atol=1e-9, rtol=1e-9)
    gradients = torch.autograd.grad(terms["dependence"], list(stage.x.encoder.parameters()))
    wanted = torch.autograd.grad(expected, list(stage.x.encoder.parameters()))
    torch.testing.assert_close(gradients, wanted, atol=1e-9, rtol=1e-9)
    assert stage.description["independence"] == "7, beside 16 steps, S evened"


def test_a_short_axis_of_s_tells_as_much_as_a_long_one() -> None:
    """What E says of the second axis, which has 5 % of the variance, is not lost."""
    generator = Generator().manual_seed(0)
    codes = torch.randint(4, (2, 640), generator=generator)
    axes = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.3, -0.3]])  # 95 % and 5 % when standardised
    s = codes.T.float() @ axes + 0.01 * torch.randn(640, 3, generator=generator)
    found = []
    for code in codes:
        e = torch.nn.functional.one_hot(code, 4).float()
        memory = Remembered(3, 4)
        memory.add(s[:600], e[:600])
        found.append(memory.dependence(s[600:], e[600:]))
    of_long, of_short = found
    assert of_short > of_long / 2  # a tenth of it where S is standardised alone
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(memory.dependence(s[600:], e[600:]), of_short, rtol=0, atol=0)


def test_the_latest_steps_are_remembered_and_kept_with_a_run(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    for step in range(18):
        stage.objective(stage.players[0], _batch(step), Generator().manual_seed(4))
        assert stage.x.remembered.e.shape == (5 * min(step + 1, 16), 3)
    found = stage.x.remembered.s, stage.x.remembered.e
    for step in (2, 17):  # the first two have made room
        images = _batch(step).x
        rows = slice(5 * (step - 2), 5 * (step - 1))
        torch.testing.assert_close(found[0][rows], stage.x.shared_encoder(images).representation)
        torch.testing.assert_close(found[1][rows], stage.x.encoder(images).representation)
    assert not found[1].requires_grad
    resumed = _stage(tmp_path)
    resumed.load_state_dict(stage.state_dict())
    for name, value in stage.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    before = {k: v for k, v in stage.state_dict().items() if "remembered" not in k}
    _stage(tmp_path).load_state_dict(before)  # of a run that began before there was a memory


def test_one_encoder_remembers_both_images_and_compares_each_with_them(tmp_path: Path) -> None:
    stage = _stage(tmp_path, domains=1)
    halves = []
    for step in range(2):
        terms = stage.objective(stage.players[0], _batch(step), Generator().manual_seed(4))
        halves += [
            (stage.x.shared_encoder(images).representation, stage.x.encoder(images).representation)
            for images in (_batch(step).x, _batch(step).y)
        ]
    s, e = (torch.cat(each) for each in zip(*halves, strict=True))
    torch.testing.assert_close((stage.x.remembered.s, stage.x.remembered.e), (s, e))
    before = s[:10], e[:10]
    unit = _evened(before[0], before[0]), _unit(before[1], before[1])
    expected = sum(
        7 * _by_quadruples(_evened(s, before[0]), _unit(e, e), *unit) for s, e in halves[2:]
    )
    torch.testing.assert_close(terms["dependence"], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_without_a_weight_there_is_no_such_term(tmp_path: Path, weight: float) -> None:
    artifact = make_shared(tmp_path / "run" / "artifact", 0)
    config = ExclusiveStageConfig(
        name="infomax-exclusive", shared=tmp_path / "run", independence=weight
    )
    stage = config.build(len(artifact.spec.bands), artifact.spec.encoder.image_size).double()
    terms = stage.train().objective(stage.players[0], _batch(0), Generator().manual_seed(4))
    assert ("dependence" in terms) == (weight > 0)
