"""Encoders of Hugging Face's transformers as backbones: the tokens of texts to features."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dafw.data.fields import MASK
from dafw.data.hub import PREFIX, pretrained, transformers
from dafw.errors import UserError, choose
from dafw.nn.weights import loads_weights

Pooling = Literal["cls", "mean"]

KEY = "model.network.backbone"
_ONE_MASK = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Architectures that use the mask of the tokens in every layer, and for nothing else. They take one that is made
already, so that they do not ask the device whether there is any padding."""


class TextEncoder(nn.Module):
    """Tokens to features (N, d), with the weights of a checkpoint of transformers.

    Padding is masked: what a text is padded to changes its features by rounding alone. Dropout is as the checkpoint's
    configuration says. Layers behind the last hidden states, such as the pooler of BERT, are left out.

    Args:
        name: a folder, or a model's name on the hub, see :func:`dafw.data.hub.pretrained`.
        pooling: ``cls`` takes the last hidden state of the first token, ``mean`` their mean over the tokens.
        changes: values of the checkpoint's configuration to change, such as ``hidden_dropout_prob``.

    Attributes:
        num_features: width d of the features.

    Raises:
        UserError: if there is no such model, it cannot be read, is no encoder, takes no mask, or lacks weights; for a
            value that its configuration does not have.
    """

    def __init__(self, name: str, *, pooling: Pooling = "cls", **changes: Any) -> None:
        super().__init__()
        self.name, self.pooling = name, choose("backbone_args.pooling", pooling, get_args(Pooling))
        config = pretrained("AutoConfig", name, KEY)
        known = config.to_dict()
        for key, value in changes.items():
            setattr(config, choose(f"value of the configuration of {name} in backbone_args", key, known), value)
        if getattr(config, "is_encoder_decoder", False) or not isinstance(getattr(config, "hidden_size", None), int):
            raise UserError(f"{name} ({KEY}) is a {config.model_type}, which is no encoder of texts")
        if loads_weights():
            options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
            self.model, info = pretrained("AutoModel", name, KEY, **options)
            lacking = sorted(key for key in info["missing_keys"] if not key.startswith("pooler"))
            if lacking:
                raise UserError(f"{name} ({KEY}) lacks {len(lacking)} weights of its model, {lacking[0]} first")
        else:
            self.model = transformers(name).AutoModel.from_config(config)
        self.takes = set(inspect.signature(self.model.forward).parameters)
        if not {"input_ids", MASK} <= self.takes:
            raise UserError(f"{name} ({KEY}) is a {config.model_type}, which takes no mask of texts of several lengths")
        if isinstance(getattr(self.model, "pooler", None), nn.Module):
            self.model.pooler = None
        self.num_features: int = config.hidden_size
        self.pad, self.longest = config.pad_token_id or 0, _longest(self.model, config)
        config = self.model.config
        plain = config.model_type in _ONE_MASK and not getattr(config, "is_decoder", False)
        self.masks_once = plain and getattr(config, "_attn_implementation", "") == "sdpa"
        self.model.train()  # transformers gives it in evaluation mode

    def forward(self, x: Any) -> Tensor:
        """The features of texts.

        Args:
            x: ``input_ids`` and ``attention_mask``, (N, L) int64 each, and what else the tokenizer gives.

        Raises:
            UserError: for other inputs, for more tokens than the model takes, or for tokens that it does not know.
        """
        if not isinstance(x, Mapping) or not {"input_ids", MASK} <= x.keys():
            raise UserError(
                f"the backbone {PREFIX}{self.name} takes the tokens of texts: give --data TextDomains, or samples with "
                f"input_ids and {MASK}"
            )
        mask = x[MASK].bool()
        length = mask.shape[1]
        if self.longest is not None and length > self.longest:
            raise UserError(
                f"{self.name} ({KEY}) takes at most {self.longest} tokens, and a text has {length}: set data.max_length"
            )
        given = {name: part for name, part in x.items() if name in self.takes}
        given["input_ids"] = x["input_ids"].masked_fill(~mask, self.pad)
        if self.masks_once:
            given[MASK] = mask[:, None, None].expand(-1, 1, length, length)
        try:
            hidden: Tensor = self.model(**given).last_hidden_state
        except IndexError as error:
            raise UserError(
                f"{self.name} ({KEY}) does not know these tokens: data.tokenizer must be of the same model"
            ) from error
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def _longest(model: nn.Module, config: Any) -> int | None:
    """How many tokens a model takes; ``None`` if it does not say so."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    first = 0 if getattr(table, "padding_idx", None) is None else table.padding_idx + 1  # RoBERTa counts from there
    return positions - first
