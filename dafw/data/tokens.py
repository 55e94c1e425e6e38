"""Texts to tokens, one text at a time, where the data are loaded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dafw.data.fields import MASK
from dafw.data.hub import pretrained
from dafw.errors import UserError

KEY = "data.tokenizer"
USUAL_LENGTH = 256
"""Tokens of a text that are kept if nothing is said."""
_NO_LIMIT = 1_000_000
"""From this length on, what a tokenizer calls its limit stands for none."""


class Tokenizer:
    """Texts to tokens, with the tokenizer that an encoder of transformers comes with.

    Args:
        name: a folder, or a model's name on the hub, see :func:`dafw.data.hub.pretrained`.
        max_length: tokens of a text that are kept, those that begin and end it among them; ``None``: as many as the
            model takes, but no more than :data:`USUAL_LENGTH`.

    Raises:
        UserError: if there is no such tokenizer, or it takes fewer tokens.
    """

    def __init__(self, name: str, max_length: int | None = None) -> None:
        self.name, self.made = name, pretrained("AutoTokenizer", name, KEY)
        stated = getattr(self.made, "model_max_length", None)
        limit = stated if isinstance(stated, int) and stated < _NO_LIMIT else None
        if max_length is not None and limit is not None and max_length > limit:
            raise UserError(
                f"data.max_length is {max_length}, and the model of {name} ({KEY}) takes at most {limit} tokens"
            )
        self.max_length = min(USUAL_LENGTH, limit or USUAL_LENGTH) if max_length is None else max_length

    def __call__(self, text: str) -> dict[str, Tensor]:
        """The tokens of a text: by name int64 tensors (L,), ``input_ids`` and ``attention_mask`` among them.

        Raises:
            UserError: if the text has no token.
        """
        found = self.made(text, truncation=True, max_length=self.max_length, return_attention_mask=True)
        if not found["input_ids"]:
            raise UserError(f"the tokenizer {self.name} ({KEY}) finds no token in the text {text[:40]!r}: remove it")
        known = {"input_ids", "token_type_ids", MASK}
        return {name: torch.tensor(values, dtype=torch.int64) for name, values in found.items() if name in known}


class Tokenised(Sequence[Any]):
    """Texts that are turned into tokens when they are asked for.

    Args:
        texts: the texts.
        tokenizer: of the network that they are for; ``None``: an item is the text itself.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer | None) -> None:
        self.texts, self.tokenizer = texts, tokenizer

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        text = self.texts[index]
        return text if self.tokenizer is None else self.tokenizer(text)
