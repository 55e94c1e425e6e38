"""AdaMI and AdaEnt: the prior, what is refused, and that no source is needed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dafw.errors import UserError
from dafw.losses.pixel_terms import class_ratios
from dafw.methods import AdaEnt, AdaMI, Method
from dafw.testing import case

ITEM = case(AdaMI)


def test_the_estimated_prior_is_the_source_models_and_stays(tmp_path: Path) -> None:
    item = case(AdaMI, data_arguments={"sizes": True})
    method: Any = item.make()
    data = item.make_data()
    images = [data.domain("b", "train").inputs[index] for index in range(40)]
    method.eval()
    with torch.no_grad():
        found = [class_ratios(method.network(image[None]).logits) for image in images]
    item.train(tmp_path, method=method, data=data)
    torch.testing.assert_close(method.shares, torch.cat(found).mean(0), rtol=1e-4, atol=1e-5)
    path = tmp_path / "step=1.ckpt"
    method.trainer.save_checkpoint(path)
    assert torch.equal(AdaMI.load(str(path)).shares, method.shares)


def test_known_and_uniform_priors() -> None:
    assert ITEM.make(prior="uniform").shares.tolist() == pytest.approx([1 / 3] * 3)  # type: ignore[union-attr, operator]
    assert ITEM.make(prior=[0.5, 0.25, 0.25]).shares.tolist() == [0.5, 0.25, 0.25]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": [0.5, 0.5]}, "model.prior has 2 numbers for 3 classes: give one a class"),
        ({"prior": [0.5, 0.5, 0.5]}, "model.prior must sum to 1, and sums to 1.5"),
        ({"prior": [1.5, -0.5, 0.0]}, "model.prior must be from 0 to 1, not 1.5"),
        ({"class_weights": [1.0]}, "model.class_weights has 1 numbers for 3 classes: give one a class"),
        ({"prior": "unifrom"}, 'did you mean "uniform"'),
    ],
)
def test_a_wrong_prior_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        ITEM.make(**options)
    assert said in str(refused.value)


def test_adaent_turns_the_divergence_round(tmp_path: Path) -> None:
    def weights(method: Method) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in method.network.parameters()])

    options = {"prior": "uniform"}
    item = case(AdaEnt)
    ours, _ = item.train(tmp_path, method=item.make(**options))
    same, _ = ITEM.train(tmp_path, method=ITEM.make(divergence="prior_estimate", **options))
    other, _ = ITEM.train(tmp_path, method=ITEM.make(**options))
    assert torch.equal(weights(ours), weights(same))
    assert not torch.equal(weights(ours), weights(other))


def write_shares(path: Path, ids: list[str], shares: list[list[float]], names: tuple[str, ...]) -> Path:
    lines = [f"domain,sample,{','.join(f'share_{name}' for name in names)}"]
    lines += [f"b,{one},{','.join(map(str, values))}" for one, values in zip(ids, shares, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_image_may_have_a_prior_of_its_own(tmp_path: Path) -> None:
    """The same prior for all trains what one prior trains; others train something else, image by image."""

    def weights(method: Method) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in method.network.parameters()])

    data = ITEM.make_data()
    data.setup("fit")
    (target,) = [domain for domain in data.train_domains if domain.name == "b"]
    ids, names = [target.id(index) for index in range(len(target))], data.class_names
    shares = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]
    same = write_shares(tmp_path / "same.csv", ids, [shares[0]] * len(ids), names)
    own = write_shares(tmp_path / "own.csv", [*ids, "more"], [shares[i % 2] for i in range(len(ids) + 1)], names)
    one, _ = ITEM.train(tmp_path, method=ITEM.make(prior=shares[0]))
    equal, _ = ITEM.train(tmp_path, method=ITEM.make(image_priors=str(same)))
    each, _ = ITEM.train(tmp_path, method=ITEM.make(image_priors=str(own)))
    assert torch.equal(weights(one), weights(equal))
    assert not torch.equal(weights(one), weights(each))
    assert isinstance(each, AdaMI)
    assert each.shares_of_images is not None
    assert each.shares_of_images[:2].tolist() == shares


def test_a_wrong_file_of_priors_is_refused(tmp_path: Path) -> None:
    from dafw.data.shares import read_shares

    def said(text: str | None) -> str:
        path = tmp_path / "p.csv"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError) as refused:
            read_shares("model.image_priors", str(path), ["x", "y"], ["a", "b"])
        return str(refused.value).replace(str(path), "p.csv")

    head = "sample,share_a,share_b\n"
    assert said(None).startswith("model.image_priors p.csv cannot be read: ")
    assert said("sample,share_a\nx,1\n") == (
        "model.image_priors p.csv has no column share_b: it needs sample, share_a, share_b"
    )
    assert said(head) == "model.image_priors p.csv has no column sample: it needs sample, share_a, share_b"
    assert said(f"{head}x,0.5,0.5\n") == "model.image_priors p.csv has no row for the sample y"
    assert said(f"{head}x,0.5,much\n") == "model.image_priors p.csv has a share of x that is no number"
    assert said(f"{head}x,0.5,0.6\n").endswith("shares of x that are negative or do not sum to 1: 1.1")
