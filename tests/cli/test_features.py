"""Rows of features from the command line: train, resume, predict, and draw."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import PLAIN, call, one_run, refused
from commands import rows as read
from feature_files import one_table, write

from dafw.run.config import parse, resolved_config

FEATURES = ("--data", "FeatureDomains", "--data.source", "a", "--data.target", "b", "--data.root", "x.npz")
MLP = ("--model.network.backbone", "mlp")
SHORT = ("--data.batch_size", "8", "--data.steps_per_epoch", "2", "--trainer.max_epochs", "1", *PLAIN)


@pytest.fixture(autouse=True)
def table(tmp_path: Path) -> None:
    write(tmp_path / "x.npz", one_table())


def test_the_width_of_the_network_follows_the_data() -> None:
    for backbone in ("mlp", "identity"):
        cli = parse(["--model", "DANN", *FEATURES, "--model.network.backbone", backbone])
        network = resolved_config(cli)["model"]["init_args"]["network"]["init_args"]
        assert network["backbone_args"] == {"in_features": 6}
    cli = parse(["--model", "DANN", *FEATURES, *MLP, "--model.network.backbone_args", '{"widths": [7]}'])
    assert resolved_config(cli)["model"]["init_args"]["network"]["init_args"]["backbone_args"] == {
        "in_features": 6,
        "widths": [7],
    }
    assert cli.model.network.num_features == 7


def test_train_predict_and_draw(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*("--model", "DANN"), *FEATURES, *MLP, *SHORT, "--run.plots", "true", "--data.standardise", "domain"]
    given += ["--run.validators", "[ProxyADistance]"]
    code, out, err = call(capsys, "fit", *given)
    assert (code, err.count("error")) == (0, 0), err
    assert "a: 60 rows of 6 features, 2 classes" in out + err
    run = one_run(Path("runs"))
    result = json.loads((run / "result.json").read_text())
    assert -2 <= result["history"][-1]["validators"]["proxy_a_distance"] <= 2
    drawn = {path.stem for path in (run / "plots").glob("*.png")}
    assert drawn == {"embedding", "confusion", "curves"}
    code, out, err = call(capsys, "predict", run, "--output", "found.csv")
    assert code == 0, err
    rows = read(Path("found.csv").read_text())
    assert len(rows) == int(out.split(" predictions")[0].rpartition(" ")[2])
    assert all(row["sample"].startswith("b/") for row in rows)
    said = refused_there(capsys, "predict", run, "--images", "x.npz")
    assert "no images can be predicted" in said


def refused_there(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1, err
    return err


def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = ("--model", "DANN", *SHORT)
    assert "give --model.network.backbone mlp" in refused(capsys, "fit", *model, *FEATURES)
    timm = ("--model.network.backbone", "resnet18")
    assert "give --model.network.backbone mlp" in refused(capsys, "fit", *model, *FEATURES, *timm)
    gone = [*FEATURES[:-1], "gone.npz"]
    assert "gone.npz does not exist" in refused(capsys, "fit", *model, *gone, *MLP)
    said = refused(capsys, "fit", *model, *FEATURES, *MLP, "--data.label_column", "lables")
    assert 'no column "lables"' in said
    assert "label" in said
    parts = one_table()
    parts["features"][3, 3] = np.inf
    write(tmp_path / "x.npz", parts)
    assert "row 3 of x.npz has no finite number as feature" in refused(capsys, "fit", *model, *FEATURES, *MLP)
    write(tmp_path / "x.npz", one_table())
    other = (*FEATURES, "--model", "ERM", *SHORT, "--data.standardise", "domain")
    assert "a generalization method does not see" in refused(capsys, "fit", *other, *MLP)
    view = ("--model", "FixMatch", *SHORT)
    assert "has no augmentation" in refused(capsys, "fit", *view, *FEATURES, *MLP)


def test_a_network_for_images_meets_rows_in_python(tmp_path: Path) -> None:
    """Rows are not divided by 255, and have no channels."""
    cli = parse(["--model", "SourceOnly", *FEATURES, *MLP])
    cli.datamodule.setup("fit")
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert (batch.x == cli.model.network.normalise(batch.x)).all()
