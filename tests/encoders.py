"""Tiny encoders of texts with random weights, saved as a hub would have them, and texts for them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("good", "bad", "fine", "poor", "book", "plot", "film", "scene", "the", "a", "very", "was", "is", "it", "and")
"""What the tokenizer knows, beside its special tokens."""
#: Special tokens in the order of their ids, by the architecture: BERT's pad is 0, RoBERTa's 1.
SPECIAL = {"roberta": ("<s>", "<pad>", "</s>", "<unk>")}
_BERT = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def make_tokenizer(folder: Path, kind: str = "bert") -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL.get(kind, _BERT)
    pad, first, last, unknown = (special[1], special[0], *special[2:]) if kind == "roberta" else special
    made = Tokenizer(WordLevel({word: code for code, word in enumerate((*special, *WORDS))}, unk_token=unknown))
    made.pre_tokenizer = Whitespace()
    ends = [(word, special.index(word)) for word in (first, last)]
    made.post_processor = TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    names = {"pad_token": pad, "cls_token": first, "sep_token": last, "unk_token": unknown}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=24, **names).save_pretrained(folder)


def make_encoder(folder: Path, kind: str = "bert", *, dropout: float = 0.0, **changes: Any) -> Path:
    """An encoder of one layer with its tokenizer.

    Args:
        folder: where it is saved.
        kind: its architecture, as transformers calls it.
        dropout: of its layers.
        changes: further values of its configuration.
    """
    import torch
    import transformers

    size = len(WORDS) + len(_BERT)
    sizes = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 26 if kind == "roberta" else 24}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "distilbert":
        sizes = {
            "vocab_size": size,
            "dim": 16,
            "n_layers": 1,
            "n_heads": 2,
            "hidden_dim": 16,
            "max_position_embeddings": 24,
        }
        drops = {"dropout": dropout, "attention_dropout": dropout}
    config = transformers.AutoConfig.for_model(
        kind, **{**sizes, **drops, "pad_token_id": int(kind == "roberta"), **changes}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():  # the usual initial weights hardly tell one text from another
        parameter.data *= 4 if parameter.ndim > 1 else 1
    model.save_pretrained(folder)
    make_tokenizer(folder, kind)
    return folder


def reviews(domain: str, count: int) -> list[tuple[str, str]]:
    """Texts with the labels ``neg`` and ``pos``, of several lengths; each domain has words of its own."""
    draw = np.random.default_rng([len(domain), *domain.encode()])
    things = ("book", "plot") if domain == "books" else ("film", "scene")
    found = []
    for number in range(count):
        label = ("neg", "pos")[number % 2]
        judgement = {"neg": ("bad", "poor"), "pos": ("good", "fine")}[label]
        words = [*draw.choice(WORDS[8:], draw.integers(1, 6)), draw.choice(things), draw.choice(judgement)]
        found.append((f"{' '.join(words)} {number}", label))
    return found


def write_reviews(folder: Path, domains: Sequence[str] = ("books", "films"), count: int = 60) -> Path:
    """A file of labelled reviews for each domain, with the columns ``text`` and ``label``."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in domains:
        with (folder / f"{domain}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *reviews(domain, count)])
    return folder
