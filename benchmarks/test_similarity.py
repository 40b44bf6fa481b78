"""A similarity map of 256 x 256 pixels, against every patch by itself in float32, and against its
own matrix products alone.

How many hidden units are off, and so are left out, depends on the weights and on the image.
CROSSMI_PIXELS may name the artifact of a trained model and CROSSMI_IMAGE a .npy of reflectance
(band, 256, 256); without them the weights are untrained and the image is noise.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact, ArtifactSpec, Networks, save_artifact
from mimodel.likeness import Terms
from mimodel.networks import EncoderSpec, inference_dtype
from mimodel.normalisation import Normalisation
from mimodel.objectives import joint_term
from mimodel.similarity import PreparedImage

BANDS = ("B04", "B03", "B02", "B08")
SIZE, QUERY = 256, (128, 100)
PLACES = (SIZE - 8) ** 2
PART = 2048
"""Patches that are taken one by one; a whole image would take minutes."""
DTYPE = inference_dtype(torch.device("cpu"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The encoder of 9 x 9 pixels."""
    if trained := os.environ.get("CROSSMI_PIXELS"):
        return Artifact.load(Path(trained))
    encoder = EncoderSpec.for_images(4, (9, 9))
    spec = ArtifactSpec(
        name="untrained",
        encoder=encoder,
        normalisation=Normalisation(bands=BANDS, mean=(0.1,) * 4, std=(0.05,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
    )
    folder: Path = tmp_path_factory.mktemp("artifact") / "artifact"
    return save_artifact(folder, spec, Networks(spec).state_dict(), "# Untrained\n")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    if given := os.environ.get("CROSSMI_IMAGE"):
        reflectance: np.ndarray = np.load(given, allow_pickle=False)
        assert reflectance.shape[1:] == (SIZE, SIZE)
        return reflectance
    return np.random.default_rng(0).uniform(0, 0.4, (4, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(artifact: Artifact, image: np.ndarray) -> PreparedImage:
    prepared = PreparedImage(artifact, image)
    prepared.maps([QUERY])
    return prepared


@pytest.mark.benchmark(group=f"a map of {SIZE} x {SIZE} pixels ({PLACES} places)")
class TestMap:
    def test_patch_by_patch_in_float32(
        self, benchmark: Any, artifact: Artifact, image: np.ndarray
    ) -> None:
        """The baseline, of some places alone: the networks as they are trained, in batches."""
        networks = artifact.networks
        g, t = networks.global_statistics, networks.local_statistics
        assert g is not None
        assert t is not None
        normalised = torch.from_numpy(artifact.spec.normalisation(image))
        windows = normalised.unfold(1, 9, 1).unfold(2, 9, 1).movedim(0, 2).flatten(0, 1)

        @torch.inference_mode()
        def part() -> float:
            c_q, s_q = networks.encoder(windows[:1])
            total = 0.0
            for patches in windows[:PART].split(256):
                c, s = networks.encoder(patches.contiguous(memory_format=torch.channels_last))
                for features, other in ((c, s_q), (c_q, s)):
                    whole = g.score(g.feature_side(features), g.representation_side(other))
                    local = t.score(t.feature_side(features), t.representation_side(other))
                    total += float((joint_term(whole) + joint_term(local).mean(-1)).sum())
            return total

        assert benchmark.pedantic(part, rounds=2) < 0
        _by_place(benchmark, PART)

    def test_first_map(self, benchmark: Any, artifact: Artifact, image: np.ndarray) -> None:
        found = benchmark.pedantic(
            lambda: PreparedImage(artifact, image).maps([QUERY])[0], rounds=2
        )
        assert found.scores.size == PLACES
        _by_place(benchmark, PLACES)

    def test_further_query(self, benchmark: Any, prepared: PreparedImage) -> None:
        benchmark.pedantic(lambda: prepared.maps([QUERY]), rounds=3)
        _by_place(benchmark, PLACES)

    def test_fast_query(self, benchmark: Any, prepared: PreparedImage) -> None:
        """The image's features alone, `Terms.IMAGE`."""
        benchmark.pedantic(lambda: prepared.maps([QUERY], terms=Terms.IMAGE), rounds=3)
        _by_place(benchmark, PLACES)

    def test_products_of_a_query(self, benchmark: Any) -> None:
        """The twelve 512 x 512 layers that each place goes through patch by patch, less what
        neighbours share, as bare matrix products."""
        rows = torch.randn(1024, 512, dtype=DTYPE)
        layer = torch.randn(512, 512, dtype=DTYPE)
        out = torch.empty(1024, 512, dtype=DTYPE)

        @torch.inference_mode()
        def products() -> None:
            for _ in range(12 * PLACES // 1024):
                torch.mm(rows, layer, out=out)

        benchmark.pedantic(products, rounds=2)
        _by_place(benchmark, PLACES)

    def test_products_at_the_peak(self, benchmark: Any) -> None:
        """As much arithmetic as these, in one large product."""
        size = 2048
        a, b = torch.randn(2, size, size, dtype=DTYPE)
        times = round(12 * PLACES * 512**2 / size**3)
        benchmark.pedantic(lambda: [a @ b for _ in range(times)], rounds=2)
        _by_place(benchmark, PLACES)


def _by_place(benchmark: Any, places: int) -> None:
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info["microseconds a place"] = round(median / places * 1e6, 2)
