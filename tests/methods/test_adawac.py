"""AdaWAC: two steps of the authors' code, its weights, and views of masks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vectors import golden

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.dice import soft_dice
from dafw.methods import AdaWAC
from dafw.problems import MaskOutputs
from dafw.testing import case

ITEM = case(AdaWAC)


def test_two_steps_are_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: torch.from_numpy(value) for name, value in golden("adawac/two_steps.npz").items()}
    options = {"weight": float(given["lam_ac"]), "rate": float(given["lr_w"]), "dice_share": float(given["dice_ratio"])}
    method: Any = ITEM.make(**options)
    count = len(given["idx"])
    method.starts = torch.zeros(1, dtype=torch.int64)
    method.log_odds = torch.zeros(len(given["s0_all_weights"]))
    for step in ("s0", "s1"):
        logits, features = given[f"{step}_logits1"].requires_grad_(), given[f"{step}_feat1"].requires_grad_()
        outputs = MaskOutputs(
            torch.cat([features, given[f"{step}_feat2"]]), torch.cat([logits, given[f"{step}_logits2"]])
        )
        images = torch.zeros(count, 3, *logits.shape[2:], dtype=torch.uint8)
        unit = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(count, 2, 3)
        batch = Batch(
            images,
            given[f"{step}_y1"].to(torch.uint8),
            torch.zeros(count, dtype=torch.int64),
            given["idx"],
            count,
            views={"affine": images},
            maps={"affine": unit},
        )
        monkeypatch.setattr(method, "forward_rows", lambda *_, found=outputs, **__: found)
        carried = given[f"{step}_y2"].to(torch.uint8)
        monkeypatch.setattr(type(method.problem), "carry", lambda *_, found=carried: found)
        terms = method.losses(batch)
        torch.testing.assert_close(sum(terms.values()), given[f"{step}_loss"])
        dice = (soft_dice(logits, batch.y) + soft_dice(given[f"{step}_logits2"], carried)) / 2
        torch.testing.assert_close(dice, given[f"{step}_dice"][0])
        found = torch.autograd.grad(sum(terms.values()), [logits, features])
        torch.testing.assert_close(found[0], given[f"{step}_grad_logits1"])
        torch.testing.assert_close(found[1], given[f"{step}_grad_feat1"])
        method.commit(batch)
        torch.testing.assert_close(method.log_odds.sigmoid(), given[f"{step}_all_weights"][:, 0])


def test_dice_leaves_out_pixels_without_a_label() -> None:
    logits, y = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    y[:, :, 4] = 255
    torch.testing.assert_close(soft_dice(logits, y), soft_dice(logits[..., :4], y[..., :4]))
    nothing = torch.full_like(y, 255)
    assert float(soft_dice(logits, nothing)) == 0


@pytest.mark.parametrize("sizes", [False, True])
def test_a_large_gap_overflows_nothing_and_the_table_is_in_the_checkpoint(sizes: bool, tmp_path: Path) -> None:
    item = case(AdaWAC, weight=1000.0, rate=1000.0, data_arguments={"sizes": sizes})
    method: Any
    method, trainer = item.train(tmp_path)
    assert len(method.log_odds) == 80
    drawn = method.log_odds != 0
    assert bool(drawn.any())
    assert float(method.log_odds.abs().max()) > 100  # beyond the exponential of float32
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())
    path = tmp_path / "step=1.ckpt"
    trainer.save_checkpoint(path)
    assert torch.equal(AdaWAC.load(str(path)).log_odds, method.log_odds)  # type: ignore[attr-defined]
    again = replace(item, data={**item.data, "count": 30})
    with pytest.raises(UserError, match=r"weighs 80 samples|changed"):
        again.train(tmp_path, ckpt_path=path, epochs=3)


def test_the_control_gives_every_label_the_weight_one(tmp_path: Path) -> None:
    method: Any
    method, _ = ITEM.train(tmp_path, method=ITEM.make(**AdaWAC.control))
    assert not method.log_odds.any()
    assert method.last_terms["consistency"] == 0
