"""How long the rows that were looked at are to either model, and what that costs in arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.features import Reading
from influcoder_ray.encoder.flops import forward_flops
from influcoder_ray.encoder.model import check_encoder
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import (
    loss_tokens,
    resolve_template,
    separator_of,
    special_frame,
    text_windows,
)
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.flops import forward_backward_flops
from influcoder_ray.gradients.loading import load_config, skeleton
from influcoder_ray.stages.folders import at_hand


@dataclass(frozen=True)
class PerRow:
    """What one row of a kind comes to, on average over those that were looked at."""

    teacher_tokens: float
    gradient_flops: float
    encoder_tokens: float
    encoder_flops: float


class Models:
    """Both models without their weights: configs, tokenizers, shapes.

    Raises:
        UserError: a folder holds no such model, or the adapter fits none of its modules.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        spec, adapter = at_hand(settings.model, weights=False), at_hand(settings.adapter)
        config = load_config(spec, weights=False)
        self.modules = len(find_targets(config, adapter))
        self.teacher: nn.Module = skeleton(config)
        self._teacher_tokenizer = load_tokenizer(
            spec.path, setting="model.path", trust_remote_code=spec.trust_remote_code
        )
        encoder = at_hand(settings.encoder, weights=False)
        check_encoder(encoder, weights=False)
        self._tokenizer: Any = load_tokenizer(encoder.path, setting="encoder.path")
        with torch.device("meta"):
            self.encoder: nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(encoder.path))
        # What a trained encoder's folder holds beside weights.
        self.tokenizer_bytes = sum(p.stat().st_size for p in Path(encoder.path).glob("*token*"))

    @property
    def encoder_parameters(self) -> int:
        return sum(p.numel() for p in self.encoder.parameters())

    @cached_property
    def reading(self) -> Reading:
        """What a head of the encoder reads."""
        opening, closing = special_frame(self._tokenizer)
        between = separator_of(self._tokenizer, self._settings.encoder.separator)
        separator = self._tokenizer(between, add_special_tokens=False)["input_ids"]
        return Reading.of(self.encoder, separator, len(opening), len(closing))

    def per_row(self, examples: Sequence[Example]) -> PerRow:
        """What examples (N,) come to on average, each inside both models' windows.

        Raises:
            UserError: the model's chat template has words for none of them.
        """
        spec = self._settings.model
        template = resolve_template(self._teacher_tokenizer, spec.template)
        found = loss_tokens(examples, self._teacher_tokenizer, max_tokens=spec.max_tokens, template=template)
        tokens = [t for t in found if t.labelled > 0]
        if not tokens:
            reason = next((t.fault for t in found if t.fault), "they have no token to predict")
            raise UserError(f"model.template: none of {len(found)} rows can be tokenized ({reason})")
        # Of texts of several windows training reads the first alone; so much more is planned for it.
        windows, _ = text_windows(
            examples,
            self._tokenizer,
            max_tokens=self._settings.encoder.max_tokens,
            separator=self._settings.encoder.separator,
            most=self._settings.encoder.windows_of_a_text,
        )
        lengths = [len(t.ids) for t in tokens]
        texts = [len(window) for text in windows for window in text]
        return PerRow(
            teacher_tokens=sum(lengths) / len(lengths),
            gradient_flops=forward_backward_flops(self.teacher, lengths, [t.labelled for t in tokens])
            / len(lengths),
            encoder_tokens=sum(texts) / len(windows),
            encoder_flops=forward_flops(self.encoder, texts) / len(windows),
        )
