"""Texts from the command line: one key names the encoder, and a run trains, goes on, and predicts."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import call, refused, rows
from encoders import make_encoder, write_reviews

from dafw.errors import UserError

DATA = ("--data", "TextDomains", "--data.root", "data", "--data.source", "books", "--data.target", "films")
SMALL = ("--data.batch_size", "8", "--data.steps_per_epoch", "3", "--trainer.max_epochs", "2", "--model.lr", "0.05")
PLAIN = ("--trainer.accelerator", "cpu", "--run.wandb", "disabled", "--run.dir", "run")
DANN = ("--model", "DANN", "--model.width", "8")
ENCODER = ("--model.network.backbone", "transformers:encoder")
RUN = (*DANN, *DATA, *ENCODER, *SMALL, *PLAIN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``, ``encoder``, and ``run``, which was trained on them."""
    from dafw.cli import main

    folder = tmp_path_factory.mktemp("texts")
    write_reviews(folder / "data")
    make_encoder(folder / "encoder", dropout=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *RUN]) == 0
    return folder


@pytest.fixture(autouse=True)
def copied(made: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    """All of it, in this test's working directory."""
    if "refused" not in request.node.name:
        shutil.copytree(made, workplace, dirs_exist_ok=True)
    else:
        for name in ("data", "encoder"):
            shutil.copytree(made / name, workplace / name)


def test_a_run_knows_the_tokenizer_and_draws_pictures() -> None:
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert written["data"]["init_args"]["tokenizer"] == "encoder"
    assert written["model"]["init_args"]["network"]["init_args"]["backbone"] == "transformers:encoder"
    assert {path.name for path in Path("run/plots").iterdir()} >= {"embedding.png", "confusion.png", "curves.png"}


def test_predictions_of_the_target_and_of_further_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of further texts are the same, without the data and without the weights of the encoder."""
    assert call(capsys, "predict", "run", "--split", "all", "--output", "all.csv").code == 0
    found = {row["sample"]: row for row in rows(Path("all.csv").read_text())}
    assert len(found) == 60
    shutil.copy("data/films.csv", "more.csv")
    shutil.rmtree("data")
    Path("encoder/model.safetensors").unlink()
    done = call(capsys, "predict", "run", "--texts", "more.csv", "--output", "more-predicted.csv")
    assert (done.code, done.out.splitlines()[0]) == (0, "60 predictions"), done
    for number, row in enumerate(rows(Path("more-predicted.csv").read_text())):
        assert row["sample"] == f"more.csv/{number + 2}"
        assert float(row["p_pos"]) == pytest.approx(float(found[f"films/{number}"]["p_pos"]), abs=2e-6)


def test_an_estimate_for_further_texts(capsys: pytest.CaptureFixture[str]) -> None:
    import dafw

    shutil.copy("data/films.csv", "more.csv")
    done = call(capsys, "estimate", "run", "--texts", "more.csv", "--output", "e.json")
    assert done.code == 0, done
    (report,) = json.loads(Path("e.json").read_text())["reports"].values()
    assert report["samples"] == 60
    texts = [row["text"] for row in rows(Path("more.csv").read_text())]
    again = dafw.load("run").estimate(texts, batch_size=16)
    assert again.estimates["ac"].value == pytest.approx(report["estimates"]["ac"]["value"], abs=1e-5)
    assert again.shift.keys() == report["shift"].keys()


def test_what_predict_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    Path("numbers.csv").write_text("text\n1\n2\n")
    for given, said in (
        (("numbers.csv",), "holds numbers and no texts"),
        (("gone.csv",), "the file gone.csv does not exist"),
        (("numbers.csv", "--split", "all"), "split is a part of a target: give --texts or --split, not both"),
    ):
        done = call(capsys, "predict", "run", "--texts", *given)
        assert done.code == 2
        assert said in done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ("--model.network.backbone", "mnist_net"),
            "the backbone mnist_net takes images, and TextDomains serves texts",
        ),
        (("--model.network.backbone", "transformers:gone/away/far"), "the folder gone/away/far"),
        (("--model.network.backbone", "transformers:data"), "the folder data (data.tokenizer) holds no model"),
        (("--data.tokenizer", "other"), "leave data.tokenizer out, since it follows the backbone"),
        (("--data.augment", "weak"), "data.augment weak changes images, and texts are none"),
        (("--data.max_length", "30"), "takes at most 24 tokens"),
        (("--model.network.weights", "timm"), "model.network.weights would replace those that it comes with"),
        (("--model.network.backbone_args", "{pooling: max}"), 'unknown backbone_args.pooling "max"'),
        (("--model.network.backbone_args", "{hidden_dropout: 0}"), 'did you mean "hidden_dropout_prob"'),
        (("--model", "FixMatch"), 'FixMatch needs the augmented view "strong" of each sample, and texts have none'),
        (
            ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b"),
            "takes the tokens of texts",
        ),
        (
            ("--data", "Digits", "--data.source", "mnist", "--data.target", "usps"),
            "takes texts, and Digits serves none",
        ),
    ],
)
def test_what_fit_refused(capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], said: str) -> None:
    base = [*RUN]
    for key in changes[::2]:
        if key in base:
            del base[base.index(key) : base.index(key) + 2]
    if "ToyData" in str(changes) or "Digits" in changes:
        del base[base.index("--data.root") : base.index("--data.root") + 2]
    if "FixMatch" in changes:
        del base[base.index("--model.width") : base.index("--model.width") + 2]
    order = (*changes, *base) if changes[0] in ("--model", "--data") else (*base, *changes)
    base_dir = order.index("--run.dir")
    assert said in refused(capsys, "fit", *order[:base_dir], *order[base_dir + 2 :])


def test_a_program_predicts_texts() -> None:
    import dafw

    trained = dafw.load("run")
    found = trained.predict(["good book", "the plot was bad and poor", "fine"], batch_size=2)
    assert (found.names, found.class_names, found.probabilities.shape) == (("0", "1", "2"), ("neg", "pos"), (3, 2))
    alone = trained.predict("fine")
    assert alone.probabilities[0].tolist() == pytest.approx(found.probabilities[2].tolist(), abs=1e-6)
    with pytest.raises(UserError, match="text 1 is empty"):
        trained.predict(["good", " "])
    with pytest.raises(UserError, match="text 0 is a int: give texts"):
        trained.predict([3])


def test_a_method_that_starts_from_a_run_takes_its_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    """Tent on the layer normalisations, on the stream of the target."""
    tent = ("--model", "Tent", "--model.checkpoint", "run", *DATA, "--data.batch_size", "2", *PLAIN[:-1], "tent")
    done = call(capsys, "fit", *tent)
    assert done.code == 0, done
    written = yaml.safe_load(Path("tent/config.yaml").read_text())
    assert written["data"]["init_args"]["tokenizer"] == "encoder"
