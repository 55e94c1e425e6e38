"""Methods that learn from the test stream: what the commands and tables do for them."""

import json
from pathlib import Path

import pytest
import yaml
from commands import PLAIN, QUICK, TWO_SOURCES, call, one_run, refused, rows

DRM = ("--model", "DRM", *QUICK, "--data.steps_per_epoch", "100", "--data.source", "[a, c]")
RETRAINING = ("--model", "DRMRetraining", *TWO_SOURCES, *PLAIN, "--model.labels", "shared")
RETRAIN = ("--model.retrain", "network", "--model.confidence", "0", "--model.lr", "1")


def train_drm(capsys: pytest.CaptureFixture[str]) -> Path:
    """The directory of a DRM's run."""
    done = call(capsys, "fit", *DRM, "--run.root", "first")
    assert (done.code, done.err) == (0, "")
    return one_run(Path("first"))


def test_a_run_gives_the_numbers_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    """The network comes from the checkpoint; the one epoch is the default."""
    start = train_drm(capsys)
    trained = json.loads((start / "result.json").read_text())
    small = (*RETRAINING, "--model.checkpoint", start)
    done = call(capsys, "fit", *small, *RETRAIN)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert "retrained" in result["transductive_reason"]
    assert (result["steps"], result["history"]) == (6, [])
    assert result["setting"] == {"name": "test-time", "source": False, "target": True, "stream": True}
    kinds = ("accuracy", "mean_class_accuracy")
    assert set(result["test"]) == {"b"}
    assert set(result["test"]["b"]) == {*kinds, *(f"{kind}_without_adaptation" for kind in kinds)}
    without = {kind: result["test"]["b"][f"{kind}_without_adaptation"] for kind in kinds}
    assert trained["test"]["b"] == pytest.approx(without, rel=1e-6)
    assert result["test"]["b"]["accuracy"] != without["accuracy"]
    assert result["stream"]["domains"]["b"]["error"] == pytest.approx(1 - result["test"]["b"]["accuracy"])
    assert result["stream"]["domains"]["b"]["start_error"] == pytest.approx(1 - without["accuracy"])
    assert result["stream"]["protocol"]["reset"] == "at each shift"
    assert (trained["stream"], result["stream"]["used"]) == (None, {"samples": 1.0, "steps": 1.0})
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 1

    assert len(rows((folder / "served.csv").read_text())) == 21
    assert not (start / "served.csv").exists()

    onwards = ("--config", folder / "config.yaml", "--run.dir", folder)
    done = call(capsys, "predict", *onwards)
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert done.err.startswith("dafw: warning: b: these samples differ from the held-out source samples in ")
    predicted = rows(Path("predictions.csv").read_text())
    assert len(predicted) == 21
    done = call(capsys, "test", *onwards)
    assert done.code == 0, done.err
    printed = {line.split()[0]: float(line.split()[1]) for line in done.out.splitlines()[:-1]}  # then the file
    for kind in kinds:
        assert printed[f"test/b/{kind}"] == pytest.approx(result["test"]["b"][kind], abs=1e-4)
        assert printed[f"test/b/{kind}_without_adaptation"] == pytest.approx(trained["test"]["b"][kind], abs=1e-4)


def test_pictures_show_what_was_served(capsys: pytest.CaptureFixture[str]) -> None:
    start = train_drm(capsys)
    done = call(capsys, "fit", *RETRAINING, "--model.checkpoint", start, "--run.plots", "true", *RETRAIN)
    assert (done.code, done.err) == (0, "")
    assert {path.stem for path in one_run(Path("runs")).glob("plots/*.png")} >= {"confusion", "embedding"}


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    start = train_drm(capsys)
    fit = ("fit", *RETRAINING, "--model.checkpoint", start)
    said = refused(capsys, *fit, "--trainer.max_epochs", "3")
    assert said == "a test-time method passes once over its stream: give trainer.max_epochs 1, not 3"
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor")
    for monitored in ("val/im", "oracle/accuracy"):
        assert refused(capsys, *fit, *stopping, monitored) == (
            f'EarlyStopping monitors "{monitored}", and a test-time run has no validation'
        )
    assert "unknown value" in refused(capsys, *fit, "--data.stream_order", "sorted")
    for stream, sentence in (
        ("gradul", 'unknown data.stream "gradul": did you mean "gradual"?'),
        ("{order: mixed, reset_each_shift: true}", "a mixed stream has no shifts, so data.stream.reset_each_shift"),
        ("{window: 3}", "data.stream.window is for batches of one sample: give data.target_batch_size 1, not 4"),
        ("{segments: [{domain: b}, {domain: d}]}", 'unknown domain "d"'),
    ):
        assert refused(capsys, *fit, "--data.stream", stream).startswith(sentence)
    assert refused(capsys, *fit, "--data.stream", "mixed").startswith("a mixed stream has no shifts to return to")
    assert refused(capsys, *fit, "--data.batch_size", "22").startswith("the stream has 21 samples, fewer than a batch")
    assert refused(capsys, "validate", *fit[1:]) == (
        "a test-time run has no validation: dafw test scores what its stream has served"
    )
    assert refused(capsys, "tune", "--study", "s.db", "--objective", "entropy", *fit[1:]) == (
        "a test-time run has no validation, which the objective of a search would read: take --objective held_out, "
        "which scores what is served on other domains"
    )
    assert refused(capsys, "fit", *RETRAINING) == "model.checkpoint must be given"
    assert refused(capsys, "fit", "--model", "TestTimeMethod", *TWO_SOURCES, "--model.checkpoint", start) == (
        "model must be given"
    )


def train_source(capsys: pytest.CaptureFixture[str]) -> Path:
    """The directory of a run of the source alone."""
    done = call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--run.root", "first")
    assert (done.code, done.err) == (0, "")
    return one_run(Path("first"))


def test_settings_are_chosen_on_domains_that_are_no_targets(capfd: pytest.CaptureFixture[str]) -> None:
    start = train_source(capfd)
    data = ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b", "--data.batch_size", "8")
    search = ("--study", "s.db", "--trials", "1", "--space", "lr=0.001,0.002")
    tune = ("tune", "--model", "Tent", *data, *PLAIN, "--model.checkpoint", start, *search)
    held_out = (*tune, "--objective", "held_out", "--held-out", "c")
    assert refused(capfd, *tune, "--objective", "held_out", "--held-out", "b").startswith(
        "b is a target, and to choose"
    )
    assert "held-out corruptions: name some with --held-out" in refused(capfd, *tune, "--objective", "held_out")
    assert 'unknown domain of --held-out "d"' in refused(capfd, *tune, "--objective", "held_out", "--held-out", "d")
    assert refused(capfd, *tune, "--objective", "oracle", "--held-out", "c") == "--held-out is for --objective held_out"
    assert "is decided by target labels: take held_out" in refused(capfd, *tune, "--objective", "oracle")
    done = call(capfd, *held_out)
    assert done.code == 0, done.err
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    assert result["target"] == ["c"]
    assert f"{result['test']['c']['accuracy']:.4g}" in done.out
    assert "no target label was used to train a trial or to choose one" in done.out
    assert "the labels of c chose, which are no targets" in done.out
    assert "target" not in Path("s.best.yaml").read_text().replace("target label", "").replace("target_weight", "")
    oracle = call(capfd, *tune, "--study", "o.db", "--objective", "oracle", "--allow-oracle")
    assert oracle.code == 0, oracle.err
    assert "Tent [ORACLE]" in oracle.out


TABLE = """
tasks: ["a->b"]
seeds: [0]
select: [last, source_accuracy]
base:
  data: {class_path: dafw.testing.toys.ToyData, init_args: {batch_size: 8, steps_per_epoch: 3}}
  trainer: {max_epochs: 2, accelerator: cpu}
  model:
    init_args:
      network: {class_path: dafw.nn.network.Network, init_args: {backbone: dafw.testing.toys.ToyNet}}
  run: {plots: false, wandb: disabled}
rows:
  - name: retrained
    from: DRM
    control: DRM
    trainer: {max_epochs: 1}
    model: {class_path: DRMRetraining, init_args: {confidence: 0.0}}
  - {name: DRM, model: {class_path: DRM}}
"""


@pytest.mark.slow
def test_a_table_trains_the_start_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stream.yaml").write_text(TABLE)
    done = call(capsys, "table", "run", "stream.yaml", "--workers", "1")
    assert done.code == 0, done
    assert "2 runs, 0 done already" in done.out
    page = next(Path("runs/tables").rglob("*.html")).read_text()
    assert "retrained is test-time: it has no validation, hence no source_accuracy." in page
    assert "retrained starts from the models of DRM" in page


def test_an_infinite_gamma_can_be_given_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", "--model", "DRM", "--model.gamma", ".inf", *QUICK)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    assert "gamma: .inf" in (folder / "config.yaml").read_text()
    assert call(capsys, "fit", "--config", folder / "config.yaml").out == f"done already: {folder / 'result.json'}\n"


def test_a_method_on_normalisations_and_its_control(capsys: pytest.CaptureFixture[str]) -> None:
    first = ("--model", "SourceOnly", *QUICK, "--data.steps_per_epoch", "60", "--model.norm", "joint")
    done = call(capsys, "fit", *first, "--run.root", "first")
    assert (done.code, done.err) == (0, "")
    start = one_run(Path("first"))
    stream = ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b", *PLAIN)
    eata = ("fit", "--model", "EATA", "--model.checkpoint", start, *stream, "--data.batch_size", "7")
    options = ("--model.margin", "1", "--model.redundancy", "1", "--model.lr", "0.1", "--model.statistics", "mixed")
    done = call(capsys, *eata, *options, "--model.fisher_samples", "10", "--run.root", "own")
    assert (done.code, done.err) == (0, "")
    done = call(capsys, *eata, *options, "--model.learns", "nothing", "--run.root", "control")
    assert (done.code, done.err) == (0, "")
    own, control = (json.loads((one_run(Path(root)) / "result.json").read_text()) for root in ("own", "control"))
    assert own["stream"]["used"]["samples"] > 0
    assert control["stream"]["used"] == {"samples": 0.0, "steps": 0.0}
    assert [one["source_use"] for one in (own, control)] == ["statistics", "nothing"]
    assert list(start.glob("statistics/fisher-*.safetensors"))
    assert refused(capsys, *eata, "--model.learns", "norms") == (
        'model.learns: unknown value "norms": did you mean "norm"? (choices: head, network, norm, nothing)'
    )
