"""What the pictures of a run say of it."""

from pathlib import Path

from dafw.methods import DANN
from dafw.run.artifacts import run_title
from dafw.testing import case
from dafw.testing.toys import ToyData


def test_a_title_says_which_run_it_is_and_how_good(tmp_path: Path) -> None:
    item = case(DANN)
    data = item.make_data(target=["b", "c"])
    method, trainer = item.train(tmp_path, data=data)
    trained = run_title(method, data)
    assert trained == f"DANN, a->b,c, seed 3, step {method.steps_done}"
    trainer.test(method, datamodule=data, verbose=False)
    scores = {name: f"{method.evaluator.test[name]['accuracy']:.4f} on {name}" for name in ("b", "c")}
    count = sum(len(ToyData("a", "b").load(name, "test")) for name in scores)
    assert run_title(method, data) == f"{trained}, accuracy {', '.join(scores.values())}, n = {count}"
