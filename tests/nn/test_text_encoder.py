"""Encoders of texts: features that padding does not change, and what is wrong with a model."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from encoders import make_encoder
from torch import Tensor

from dafw.data import Sample, collate, hub
from dafw.data.tokens import Tokenizer
from dafw.errors import UserError
from dafw.nn.backbones import check_known
from dafw.nn.network import Network
from dafw.nn.text_encoder import TextEncoder
from dafw.nn.weights import without_weights

TEXTS = ("good", "the book was very good and it is good", "bad plot it was", "")
#: Architectures, and whether the mask of their layers is made once, without asking the device.
KINDS = {
    **{"bert": True, "roberta": True, "xlm-roberta": True, "camembert": True, "distilbert": True, "electra": True},
    **{"albert": True, "mpnet": False, "deberta-v2": False, "modernbert": False},
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tokens(folder: Path, *texts: str) -> dict[str, Tensor]:
    tokenizer = Tokenizer(str(folder))
    x: dict[str, Tensor] = collate([Sample(tokenizer(text), None, 0, i, {}, {}) for i, text in enumerate(texts)]).x
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_feature_and_all_weights_learn(kind: str, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model", kind)
    apart = [tokens(folder, text) for text in TEXTS]
    for pooling in ("cls", "mean"):
        encoder = TextEncoder(str(folder), pooling=pooling).double()  # type: ignore[arg-type]
        assert encoder.masks_once is KINDS[kind]
        together = encoder.eval()(tokens(folder, *TEXTS))
        assert together.shape == (4, encoder.num_features)
        assert (together[0] - together[1]).abs().max() > 1e-3
        torch.testing.assert_close(torch.cat([encoder(one) for one in apart]), together, rtol=0, atol=1e-12)
        encoder.masks_once = False
        torch.testing.assert_close(encoder(tokens(folder, *TEXTS)), together, rtol=0, atol=1e-12)
        encoder.train()(tokens(folder, *TEXTS)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_pooled_values_are_those_of_the_first_token_and_the_mean(bert: Path) -> None:
    x = tokens(bert, *TEXTS)
    first, mean = (TextEncoder(str(bert), pooling=pooling).eval() for pooling in ("cls", "mean"))
    hidden = first.model(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state
    torch.testing.assert_close(first(x), hidden[:, 0])
    own = [row[: int(mask.sum())].mean(0) for row, mask in zip(hidden, x["attention_mask"], strict=True)]
    torch.testing.assert_close(mean(x), torch.stack(own))


def test_the_weights_and_the_dropout_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = make_encoder(tmp_path / "model", dropout=0.25)
    stored, encoder = load_file(folder / "model.safetensors"), TextEncoder(str(folder))
    own = encoder.model.state_dict()
    assert own
    assert all(value.equal(stored[name]) for name, value in own.items())
    assert encoder.training
    assert {part.p for part in encoder.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}
    still = TextEncoder(str(folder), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert {part.p for part in still.modules() if isinstance(part, torch.nn.Dropout)} == {0.0}
    (folder / "model.safetensors").unlink()
    with without_weights():
        assert TextEncoder(str(folder)).model.state_dict().keys() == own.keys()
    with pytest.raises(UserError, match="cannot be read by transformers"):
        TextEncoder(str(folder))


def test_a_network_on_an_encoder(bert: Path) -> None:
    network = Network(f"transformers:{bert}", bottleneck=5, backbone_lr=0.1)
    network.set_classes(3)
    outputs = network(tokens(bert, *TEXTS))
    assert (outputs.features.shape, outputs.logits.shape) == ((4, 5), (4, 3))
    assert not network.channels_last
    check_known({"init_args": {"backbone": f"transformers:{bert}"}}, Path("a.ckpt"))


def test_inputs_that_a_model_does_not_take(bert: Path) -> None:
    encoder, x = TextEncoder(str(bert)), tokens(bert, *TEXTS)
    for wrong, said in (
        (torch.zeros(2, 3, 6, 6), "takes the tokens of texts: give --data TextDomains"),
        ({"input_ids": x["input_ids"]}, "takes the tokens of texts"),
        ({**x, "input_ids": x["input_ids"] + 100}, "data.tokenizer must be of the same model"),
        (
            {name: part.repeat(1, 3) for name, part in x.items()},
            "at most 24 tokens, and a text has 33",
        ),
    ):
        with pytest.raises(UserError, match=said):
            encoder(wrong)


def test_models_that_cannot_be_had(bert: Path, tmp_path: Path, offline: None) -> None:
    lacking = shutil.copytree(bert, tmp_path / "lacking")
    held = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps({**held, "num_hidden_layers": 2}))
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    for name, said in (
        (
            "nobody/no-such-model",
            "is no folder, this machine's cache of the hub does not have it, and the hub",
        ),
        ("/no/such/folder", "the folder /no/such/folder .model.network.backbone. does not exist"),
        (str(tmp_path), "holds no model: it has no file config.json"),
        (str(tmp_path / "odd"), "cannot be read by transformers"),
        (str(tmp_path / "t5"), "is a t5, which is no encoder of texts"),
        (str(lacking), "lacks 16 weights of its model, encoder.layer.1"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            Network(f"transformers:{name}")
        assert "\n" not in str(caught.value)


def test_without_transformers_a_sentence_names_the_extra(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs the package transformers: pip install "dafw\[text\]"'):
        Network(f"transformers:{bert}")


def test_the_hub_is_not_asked_for_what_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    class Maker:
        @staticmethod
        def from_pretrained(name: str, **options: object) -> str:
            asked.append(options)
            return name

    monkeypatch.setattr("transformers.AutoConfig", Maker)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: pytest.fail("the hub was asked"))
    assert hub.pretrained("AutoConfig", "some/model", "key") == "some/model"
    assert asked == [{"local_files_only": True}]
