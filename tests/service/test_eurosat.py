"""EuroSAT's classes from an archive to an answer: probed, calibrated, said in the card, served."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mimodel.artifact import Artifact
from mimodel.cli import app
from mimodel.data.eurosat import BANDS, CLASSES, labelled_eurosat
from mimodel.readouts import expected_calibration_error
from service.settings import Settings
from tests.mimodel.archives import write_archive
from tests.models import small_artifact
from tests.service.bodies import npy_bytes
from tests.service.test_http import NPY
from tests.service.test_load import in_a_thread


def test_a_probed_model_serves_the_classes_of_eurosat(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "images.tar", range(1, 2701, 60))
    folder = tmp_path / "artifact"
    small_artifact(folder, {}, bands=BANDS)
    probed = CliRunner().invoke(
        app,
        ["probe", str(folder), "--eurosat", str(archive), "--out", str(tmp_path / "probe"),
         "--iterations", "1500"],
    )  # fmt: skip
    assert probed.exit_code == 0, probed.output
    artifact, data = Artifact.load(folder), labelled_eurosat(archive)
    test = data.split == "test"
    with in_a_thread(artifact, Settings()) as client:
        (head,) = client.get("/models").json()["models"][0]["heads"]
        assert head["classes"] == list(CLASSES)
        answers = [
            client.post("/classify", content=npy_bytes(part), headers=NPY).json()
            for part in np.array_split(data.reflectance[test], 2)
        ]
    found = [one for answer in answers for one in answer["probabilities"]]
    probabilities = np.array(found, np.float32)
    assert probabilities.shape == (test.sum(), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    # Three colours, one a class, which even an encoder that has learnt nothing keeps apart.
    right = probabilities.argmax(1) == data.label[test]
    assert right.mean() > 0.9
    error = expected_calibration_error(probabilities, data.label[test])
    said = f"expected calibration error {100 * error:.1f} % on the test patches"
    assert said in (folder / "README.md").read_text()
    assert artifact.spec.heads["eurosat"].temperature != pytest.approx(1)
