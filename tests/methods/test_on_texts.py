"""Which methods train on the tokens of texts, and what the others say."""

import re
from pathlib import Path
from typing import Any

import pytest
from encoders import make_encoder, write_reviews

from dafw.data.fields import Fields
from dafw.errors import UserError
from dafw.testing import Case
from dafw.testing.cases import cases
from datamodules.text import TextDomains

CASES = [item for item in cases() if not item.owner.kinds or "classification" in item.owner.kinds]
NORM = "needs a network with batch normalisation"
#: What a method says of texts, or of an encoder; all others train.
REFUSED = {
    "AdaBN": NORM,
    "BatchNormAdapt": NORM,
    "CEMA": "keeps images that it uploads",
    "CoTTA": "CoTTA makes views of images, and the samples of films are none: take another method",
    "DCAN": "squeeze-and-excitation",
    "DeYO": "shuffles the patches of images",
    "FixMatch": 'needs the augmented view "strong" of each sample, and texts have none',
    "GDCAN": "squeeze-and-excitation",
    "MemSPM": "reconstructs images unless model.reconstruction_weight is 0",
    "Mixup": "averages images",
    "RMT": "makes views of images",
    "ROID": "makes views of images",
    "RoTTA": "keeps images and makes views of them",
    "UDIM": "changes images by their gradient",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews of three domains, and an encoder."""
    found = tmp_path_factory.mktemp("texts")
    write_reviews(found / "data", ("books", "music", "films"), 120)
    make_encoder(found / "encoder")
    return found


def on_texts(item: Case, folder: Path, **arguments: Any) -> Case:
    encoder = str(folder / "encoder")
    data: dict[str, Any] = {"root": str(folder / "data"), "tokenizer": encoder, "split": [0.5, 0.1, 0.4]}
    one_source = item.owner.setting.sees_target and item.name != "MetaDMoEAdaptation"  # its start model has experts
    data |= {"source": "books" if one_source else ["books", "music"], "target": "films"}
    data |= {"steps_per_epoch": 2, "batch_size": 4 if item.owner.held_out else 8}
    where = f"{TextDomains.__module__}.TextDomains"
    network = {"backbone": f"transformers:{encoder}"}
    if "cloud" in item.arguments:
        arguments["cloud"] = {"class_path": "dafw.nn.network.Network", "init_args": network}
    return Case(item.class_path, {**item.arguments, **arguments}, data, network, data_path=where)


def train(item: Case, folder: Path) -> int:
    method, _ = item.train(folder, epochs=1, limit_val_batches=0)
    return method.steps_done


@pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)
def test_a_step_or_a_sentence(item: Case, folder: Path, tmp_path: Path) -> None:
    case = on_texts(item, folder)
    if item.name not in REFUSED:
        assert train(case, tmp_path) >= 2
        return
    with pytest.raises(UserError, match=REFUSED[item.name]):
        train(case, tmp_path)


def test_the_page_says_which_methods_train() -> None:
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text().partition("## Methods")[2]
    trained, refused = page.partition("The others say")[::2]
    for part, names in ((trained, {item.name for item in CASES} - set(REFUSED)), (refused, set(REFUSED))):
        assert {item.name for item in CASES if re.search(rf"\b{item.name}\b", part)} == names


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("MemSPM", {"reconstruction_weight": 0.0}), ("Mixup", {"alpha": 0.0}), ("Fish", {"mixed": True})],
)
def test_what_needs_images_can_be_switched_off(
    name: str, arguments: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (item,) = [item for item in CASES if item.name == name]
    assert train(on_texts(item, folder, **arguments), tmp_path) == 2


def test_tokens_do_not_reach_a_network_for_images(folder: Path) -> None:
    from dafw.nn.network import Network

    network = Network()
    network.set_classes(2)
    with pytest.raises(UserError, match="the backbone mnist_net takes no texts"):
        network(["a text"])
    encoder = Network(f"transformers:{folder / 'encoder'}")
    encoder.set_classes(2)
    with pytest.raises(UserError, match="takes the tokens of texts"):
        encoder(Fields())
