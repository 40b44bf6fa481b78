"""3D Shapes: factors, pairs and tinting on made layers; the renderer against the real samples."""

import colorsys
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mimodel.data import shapes3d
from mimodel.data import shapes3d_render as scene
from mimodel.data.configs import Shapes3DConfig
from mimodel.data.shapes3d import (
    HUES,
    TRUTH,
    VIEWS,
    Shapes3D,
    Shapes3DPairs,
    TintedImages,
    UnpackedImages,
    labelled_shapes3d,
    make_shapes3d,
    open_images,
    unpack_h5,
)
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

TINY = Shapes3D({name: values[:2] for name, values in TRUTH.values.items()})


def made_layers() -> scene.Layers:
    """Pixels that say what they show: a row of floor, of wall, of object, and of sky.

    A surface's value is the square of its level, which no linear tint would give. The sky's first
    two columns say the view, in twenty-fourths of the sky's grey: 24 x first + second.
    """
    shade = np.zeros((VIEWS, 3, 6, 4, 4), np.int16)
    for surface in range(3):
        grey = 255 * np.array(scene.LEVELS) ** 2
        shade[:, surface, :, surface, :] = np.rint(scene.STEPS * grey)[:, None]
    sky = np.zeros((VIEWS, 4, 4), np.int16)
    view = np.arange(VIEWS)
    sky[:, 3, 0] = np.rint(scene.STEPS * 255 * (view // 24) / 24)
    sky[:, 3, 1] = np.rint(scene.STEPS * 255 * (view % 24) / 24)
    return scene.Layers(shade, sky)


def factors_seen(images: torch.Tensor) -> torch.Tensor:
    """(image, factor) from the pixels (image, 3, 4, 4), 0 to 1, of images of the made layers."""
    hues = [(images[:, None, :, row, 2] - HUES**2).abs().sum(2).argmin(1) for row in range(3)]
    parts = (images[:, 0, 3, :2] * 255 / scene.SKY_RGB[0] * 24).round().long()
    view = parts[:, 0] * 24 + parts[:, 1]
    return torch.stack([*hues, view // 60, view // 15 % 4, view % 15], 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes3d")
    scene.save_layers(made_layers(), folder / "layers.npz")
    return folder


@pytest.fixture(scope="module")
def opengl() -> None:
    """Skips where the system has no OpenGL, which pip cannot install; any other failure fails."""
    try:
        scene.render_view(0, 0, 0)
    except DataError as error:
        if "libegl1" not in str(error):
            raise
        pytest.skip(str(error))


def test_factors_of_every_index_are_those_of_nested_loops() -> None:
    index = torch.arange(len(TRUTH))
    nested = np.indices((10, 10, 10, 8, 4, 15)).reshape(6, -1).T
    assert torch.equal(TRUTH.factors(index), torch.from_numpy(nested))
    assert torch.equal(TRUTH.index(TRUTH.factors(index)), index)
    labels = np.column_stack(
        [
            nested[:, :3] / 10,
            np.linspace(0.75, 1.25, 8)[nested[:, 3]],
            nested[:, 4],
            np.linspace(-30, 30, 15)[nested[:, 5]],
        ]
    )
    np.testing.assert_allclose(TRUTH.labels(), labels)


def test_every_hue_is_made_of_the_levels_that_are_rendered() -> None:
    hues = [colorsys.hsv_to_rgb(hue, 1, 1) for hue in TRUTH.values["object hue"]]
    levels = np.array(scene.LEVELS)
    assert np.abs(np.array(hues)[..., None] - levels).min(2).max() < 1e-12


def test_tinting_looks_up_the_levels_of_each_surface_and_adds_sky() -> None:
    factors = torch.tensor([[3, 0, 9, 7, 2, 14], [5, 8, 1, 0, 0, 0]])
    images = TintedImages(made_layers(), "").at(TRUTH.index(factors))
    expected = np.zeros((2, 4, 4, 3))
    for image, row in itertools.product(range(2), range(3)):
        hue = colorsys.hsv_to_rgb(factors[image, row] / 10, 1, 1)
        expected[image, row] = 255 * np.array(hue) ** 2
    view = 7 * 60 + 2 * 15 + 14
    expected[0, 3, 0] = np.array(scene.SKY_RGB) * (view // 24) / 24
    expected[0, 3, 1] = np.array(scene.SKY_RGB) * (view % 24) / 24
    np.testing.assert_allclose(images, expected, atol=0.6)


def test_sums_of_layers_are_rounded_and_clipped() -> None:
    layers = made_layers()
    # Floor, wall and object meet in each pixel: far above white, below black, and at 2.5 and below.
    layers.shade[0, :, :, 0, 0] = 250 * scene.STEPS
    layers.shade[0, :, :, 0, 1] = -scene.STEPS
    layers.shade[0, :, :, 0, 2] = np.array([7, 7, 6])[:, None]
    layers.shade[0, :, :, 0, 3] = np.array([7, 7, 5])[:, None]
    image = TintedImages(layers, "").at(torch.tensor([0]))[0]
    assert image[0].tolist() == [[255] * 3, [0] * 3, [3] * 3, [2] * 3]


def test_pairs_share_scale_shape_and_orientation_and_nothing_else(made: Path) -> None:
    pairs = Shapes3DPairs(made, seed=0)
    assert pairs.image_size == (4, 4)
    seen = []
    for step in range(8):
        batch = pairs.batch(step, 1000)
        x, y = (factors_seen(images / 2 + 0.5) for images in (batch.x, batch.y))
        assert torch.equal(x[:, 3:], y[:, 3:])
        drawn = pairs.indices(step, 1000)
        assert torch.equal(x, TRUTH.factors(drawn[0]))
        assert torch.equal(y, TRUTH.factors(drawn[1]))
        seen.append(torch.cat([x, y[:, :3]], 1))
    table = torch.cat(seen)
    # Each two of the nine draws are independent and uniform: chi-square below its mean and six
    # standard deviations, for all 36 twos.
    sizes = [10, 10, 10, 8, 4, 15, 10, 10, 10]
    for one, two in itertools.combinations(range(9), 2):
        cells = sizes[one] * sizes[two]
        counts = torch.bincount(table[:, one] * sizes[two] + table[:, two], minlength=cells)
        expected = len(table) / cells
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < cells - 1 + 6 * (2 * (cells - 1)) ** 0.5, (one, two)


def test_a_batch_is_a_function_of_seed_and_step(made: Path) -> None:
    first, again, other = (Shapes3DPairs(made, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.batch(5, 8).x, again.batch(5, 8).x)
    assert torch.equal(first.batch(5, 8).y, again.batch(5, 8).y)
    assert torch.equal(first.batch(5, 8, slice(2, 5)).y, again.batch(5, 8).y[2:5])
    assert not torch.equal(first.indices(5, 8), first.indices(6, 8))
    assert not torch.equal(first.indices(5, 8), other.indices(5, 8))


def test_a_second_stage_must_read_the_same_images(made: Path) -> None:
    Shapes3DPairs(made, seed=0, normalisation=shapes3d.NORMALISATION)
    other = Normalisation(bands=("grey",), mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match="other images"):
        Shapes3DPairs(made, seed=0, normalisation=other)


def test_a_configuration_says_how_many_images_a_probe_reads(made: Path) -> None:
    config = Shapes3DConfig(name="shapes3d", folder=made, probe_images=(30, 20))
    split = config.labelled("x", 0).split
    assert ((split == "train").sum(), (split == "test").sum()) == (30, 20)


def test_labelled_images_carry_the_factors_that_made_them(made: Path) -> None:
    # More images than are handled at a time, and none of them twice.
    data = labelled_shapes3d(made, seed=0, train=1500, test=700)
    assert data.images.shape == (2200, 3, 4, 4)
    assert data.images.dtype == np.float32
    assert data.shared == ("scale", "shape", "orientation")
    assert data.classifier_width == 32  # supplement, 1.2
    factors = np.column_stack(list(data.factors.values()))
    assert list(data.factors) == list(TRUTH.values)
    np.testing.assert_array_equal(factors_seen(torch.from_numpy(data.images)), factors)
    assert len(np.unique(factors, axis=0)) == 2200
    assert (data.split == "train").sum() == 1500
    again = labelled_shapes3d(made, seed=1, train=1500, test=700)
    assert not np.array_equal(again.images, data.images)
    with pytest.raises(DataError, match="480000"):
        labelled_shapes3d(made, seed=0, train=480_000, test=1)


def write_h5(file: Path, labels: np.ndarray | None = None, name: str = "images") -> str:
    """A tiny h5 in the layout of the real one, chunks across images too; its SHA-256."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (crossmi[shapes3d])")
    images = np.random.default_rng(0).integers(0, 256, (len(TINY), 64, 64, 3), np.uint8)
    with h5py.File(file, "w") as h5:
        h5.create_dataset(name, data=images, chunks=(24, 4, 4, 1), compression="gzip")
        h5.create_dataset("labels", data=TINY.labels() if labels is None else labels)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_images_of_an_h5_are_unpacked_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes3d, "_BLOCK", 10)  # several blocks, the last one cut short
    h5, to = tmp_path / "tiny.h5", tmp_path / "tiny.npy"
    said: list[str] = []
    unpack_h5(h5, to, said.append, truth=TINY, digest=write_h5(h5))
    assert said[0] == "unpacked 24 of 64 images"
    assert said[-1] == "unpacked 64 of 64 images"
    index = torch.tensor([63, 0, 25, 25, 7])
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(UnpackedImages(to, TINY).at(index), images[index])


def test_images_are_held_whole_where_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5, to = tmp_path / "tiny.h5", tmp_path / "tiny.npy"
    unpack_h5(h5, to, print, truth=TINY, digest=write_h5(h5))
    monkeypatch.setattr(shapes3d, "_BLOCK", 7)
    monkeypatch.setattr(shapes3d, "_has_room", lambda *_: True)
    held, index = UnpackedImages(to, TINY), torch.arange(64).flip(0)
    monkeypatch.delattr(held, "_images")  # nothing is read any more
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(held.at(index), images[index])


def test_a_gpu_holds_what_leaves_as_much_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2000, 3000))
    assert shapes3d._has_room("cuda:0", 999)
    assert not shapes3d._has_room("cuda:0", 1000)
    assert not shapes3d._has_room("cpu", 1)


def test_an_unpacked_file_that_is_of_other_images_is_refused(tmp_path: Path) -> None:
    h5, to = tmp_path / "tiny.h5", tmp_path / "tiny.npy"
    unpack_h5(h5, to, print, truth=TINY, digest=write_h5(h5))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SHA256SUMS", "tiny.h5", "tiny.npy"]
    with pytest.raises(DataError, match="unpack again"):
        UnpackedImages(to)


def test_unpacked_images_are_verified_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes3d, "UnpackedImages", lambda _: None)  # these are but a few
    h5, to = tmp_path / "tiny.h5", tmp_path / "3dshapes.npy"
    unpack_h5(h5, to, print, truth=TINY, digest=write_h5(h5))
    said: list[str] = []
    make_shapes3d(tmp_path, said.append)
    assert said == [f"{to} has the images of 3dshapes.h5 already, verified"]
    body = bytearray(to.read_bytes())
    body[-1] ^= 1
    to.write_bytes(body)
    with pytest.raises(DataError, match=r"3dshapes.npy is not what it was when it came"):
        make_shapes3d(tmp_path, said.append)
    (tmp_path / "SHA256SUMS").unlink()
    make_shapes3d(tmp_path, said.append)
    assert said[-1].endswith("of which nothing says what they were")


def test_an_h5_that_is_not_3d_shapes_is_refused(tmp_path: Path) -> None:
    h5, to = tmp_path / "tiny.h5", tmp_path / "tiny.npy"
    write_h5(h5)
    with pytest.raises(DataError, match="SHA-256"):
        unpack_h5(h5, to, print, truth=TINY)
    with pytest.raises(DataError, match=r"uint8 \(480000, 64, 64, 3\)"):
        unpack_h5(h5, to, print, digest=write_h5(h5))
    with pytest.raises(DataError, match="order of factors"):
        unpack_h5(h5, to, print, truth=TINY, digest=write_h5(h5, TINY.labels()[:, ::-1]))
    with pytest.raises(DataError, match="not images and labels"):
        unpack_h5(h5, to, print, truth=TINY, digest=write_h5(h5, name="pictures"))
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.h5"]


def test_an_h5_is_never_passed_over_for_rendered_images(made: Path, tmp_path: Path) -> None:
    (tmp_path / "layers.npz").symlink_to(made / "layers.npz")
    assert open_images(tmp_path).origin.startswith("rendered")
    (tmp_path / "3dshapes.h5").write_bytes(b"not the data set")
    with pytest.raises(DataError, match="mimodel data shapes3d --to"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="SHA-256"):
        make_shapes3d(tmp_path, lambda _: None)


def test_layers_come_back_as_saved_and_are_not_rendered_again(made: Path) -> None:
    saved, loaded = made_layers(), scene.load_layers(made / "layers.npz")
    np.testing.assert_array_equal(loaded.shade, saved.shade)
    np.testing.assert_array_equal(loaded.sky, saved.sky)
    lines: list[str] = []
    make_shapes3d(made, lines.append)
    assert len(lines) == 1
    assert "already" in lines[0]
    pairs = Shapes3DPairs(made, seed=0)
    digest = hashlib.sha256((made / "layers.npz").read_bytes()).hexdigest()
    assert pairs.description["data_digest"] == digest


def test_layers_that_are_damaged_or_of_another_scene_are_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="mimodel data shapes3d --to"):
        open_images(tmp_path / "nowhere")
    file = tmp_path / "layers.npz"
    whole = bytearray((made / "layers.npz").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    for damaged in (whole, whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="renders it again"):
            open_images(tmp_path)
    layers = made_layers()
    scene.save_layers(scene.Layers(layers.shade[1:], layers.sky[1:]), file)
    with pytest.raises(DataError, match="480 views"):
        open_images(tmp_path)
    monkeypatch.setattr(scene, "_CAMERA_FOVY", 49.0)
    with pytest.raises(DataError, match="another scene"):
        open_images(made)


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes3d(tmp_path, interrupted)
    whole = np.savez_compressed

    def cut_short(*arguments: object, **arrays: object) -> None:
        whole(*arguments, **arrays)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", cut_short)
    with pytest.raises(KeyboardInterrupt):
        scene.save_layers(made_layers(), tmp_path / "layers.npz")
    assert list(tmp_path.iterdir()) == []


def test_without_opengl_a_sentence_says_what_to_install() -> None:
    # MuJoCo chooses its OpenGL when it is imported, so another process is needed.
    code = (
        "from mimodel.data import shapes3d_render as scene\n"
        "from mimodel.errors import DataError\n"
        "try: scene.render_view(0, 0, 0)\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MUJOCO_GL": "off"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "libegl1" in done.stdout
    assert "3dshapes.h5" in done.stdout


@pytest.mark.usefixtures("opengl")
def test_torch_can_compile_after_a_rendering() -> None:
    pytest.importorskip("triton", reason="this torch came without triton")
    code = (
        "from mimodel.data import shapes3d_render as scene\n"
        "scene.render_view(0, 0, 0)\n"
        "import triton\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize(
    "factors", [(1, 8, 3, 0, 0, 0), (4, 6, 9, 7, 1, 9), (0, 5, 2, 4, 2, 14), (7, 3, 0, 6, 3, 7)]
)
def test_a_tinted_image_is_the_one_that_is_rendered_in_colour(factors: tuple[int, ...]) -> None:
    view = factors[3:]
    rendered = scene.render_image(*view, HUES[list(factors[:3])].double().numpy())
    error = np.abs(tinted(factors).astype(float) - rendered)
    # Not 0: Pillow reduces bytes in two steps and clips after each.
    assert error.mean() < 0.2
    assert (error > 1).mean() < 0.02


@pytest.mark.realdata
@pytest.mark.usefixtures("opengl")
def test_rendered_images_meet_the_real_samples(crossmi_data: Path) -> None:
    with np.load(crossmi_data / "3dshapes_gt" / "real_samples.npz") as samples:
        real, factors = samples["images"].astype(float), samples["label_index"]
    chosen = [0, 3, 9, 12]  # every shape; small and large, from both sides
    assert set(factors[chosen, 4]) == {0, 1, 2, 3}
    errors = [np.abs(tinted(factors[i]) - real[i])[1:-1, 1:-1].mean() for i in chosen]
    # The samples' outermost pixels are mixed with the frame they were printed in.
    assert np.mean(errors) < 1.5
    assert max(errors) < 2


def tinted(factors: "tuple[int, ...] | np.ndarray") -> np.ndarray:
    """(64, 64, 3), from the layers of that one view: all 480 would take minutes."""
    one = scene.render_view(*(int(factor) for factor in factors[3:]))
    index = TRUTH.index(torch.tensor(factors)[None])
    first_view = index // VIEWS * VIEWS
    return TintedImages(one, "").at(first_view)[0].numpy()
