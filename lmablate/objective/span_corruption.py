"""``objective=span_corruption``: whole spans of a text are removed, and predicted after it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.objective.base import Batch, Objective, ValidationText
from lmablate.objective.likelihood import IGNORE
from lmablate.objective.masking import SPANS, VALIDATION, count, pairs_ahead, raw, segments
from lmablate.objective.measures import accuracy_and_unigram
from lmablate.objective.mlm import whole

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


class SpanLayout(NamedTuple):
    """The layout of a context of T tokens: of `text` tokens, `noise` are removed in `spans` spans. The rest with one sentinel per span
    is `source`, and ``T - source`` tokens remain for the spans."""

    text: int
    noise: int
    spans: int
    source: int


@cache
def layout(length: int, share: float, mean_span: float) -> SpanLayout:
    """Return the longest text that fits a context of `length` tokens. A text, its spans' sentinels, and those between the predicted
    spans take ``text + 2 spans`` tokens."""
    for text in range(length - 2, 1, -1):
        noise = count(share, text)
        spans = min(max(1, round(noise / mean_span)), noise, text - noise)
        if text + 2 * spans <= length:
            return SpanLayout(text, noise, spans, text - noise + spans)
    raise ConfigError(f"model.context_length={length} is too short for objective=span_corruption: give at least 4")


class SpanCorruption(Objective):
    """T5's objective (Raffel et al. 2019, arXiv 1910.10683, section 3.1.4 and figure 2): spans with `mask_share` of the tokens,
    `mean_span` long on average, are each replaced by a sentinel. They are appended to the text, each after its sentinel, and a last
    sentinel ends them. Numbers and lengths of spans are drawn as in T5's code: spans and the text between them are cut in all ways
    equally likely, the text first.

    A context is the text without its spans, then sentinels and spans. The first part is read in both directions; all of the second but
    the first sentinel is a target. A model of one stack reads both (the prefix language model of the paper's section 3.2), one of two
    splits them. The last tokens of a window do not fit and are not read: of 128, 14.

    Sentinels are the highest ids, downwards. `special_id` is the first; None: those beyond the tokenizer's.
    """

    looks_ahead: ClassVar[bool] = True
    has_measures: ClassVar[bool] = True

    def __init__(
        self, *, z_loss: float | None, mask_share: float, mean_span: float, special_id: int | None = None
    ) -> None:
        super().__init__(z_loss=z_loss)
        self.share, self.mean_span, self.special_id = mask_share, mean_span, special_id

    def layout(self, length: int) -> SpanLayout:
        return layout(length, self.share, self.mean_span)

    def check(self, context_length: int) -> None:
        spans = self.layout(context_length).spans
        if self.special_id is not None and self.special_id < spans:
            raise ConfigError(
                f"objective.special_id={self.special_id} is the first of {spans + 1} sentinels, which go downwards from it: give at "
                f"least {spans}"
            )

    def reserved(self, length: int) -> int:
        return 0 if self.special_id is not None else self.layout(length).spans + 1

    def source_length(self, length: int) -> int:
        return self.layout(length).source

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        return self._packed(targets, targets, data_seed, step)

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        return self._packed(whole(inputs, targets), targets, 0, VALIDATION)

    @property
    def first_id(self) -> int:
        """Return the sentinel of the first span; each later one has the next lower id."""
        return self.vocab_size - 1 if self.special_id is None else self.special_id

    def _packed(self, text: Tensor, targets: Tensor, data_seed: int, step: int) -> Batch:
        """`text` ``[B, T]`` without its spans, then the spans; tokens whose target does not count are no targets. Positions are
        computed on the CPU from the draws alone, so that nothing waits for a GPU."""
        n, length = text.shape
        shape = self.layout(length)
        source, spans = span_indices(raw(data_seed, step, SPANS, n, shape.text), shape)
        sentinels = self.first_id - torch.arange(shape.spans + 1, device=text.device)
        both = torch.cat((text[:, : shape.text], sentinels.expand(n, -1)), -1)
        scored = torch.cat((targets[:, : shape.text], sentinels.expand(n, -1)), -1)
        padding = length - source.shape[1] - spans.shape[1] + 1
        fill = np.full((n, padding), shape.text + shape.spans)  # the last sentinel, which ends the spans
        read = torch.from_numpy(np.concatenate((source, spans[:, :-1], fill), -1)).to(text.device)
        after = torch.from_numpy(spans[:, 1:]).to(text.device)
        wanted = torch.full_like(text, IGNORE)
        wanted[:, shape.source : shape.source + after.shape[1]] = scored.gather(-1, after)
        return Batch(both.gather(-1, read), wanted, torch.full((n,), shape.source, device=text.device))

    def yardsticks(self, inputs: Tensor, targets: Tensor) -> dict[str, Batch]:
        """Return the targets without the sentinels, which mark the end of a span."""
        own = self.validation(inputs, targets)
        return {"val_loss_span_text": own._replace(targets=self._text_of(own.targets, inputs.shape[-1]))}

    def _text_of(self, targets: Tensor, length: int) -> Tensor:
        first = self.first_id
        sentinel = (targets <= first) & (targets >= first - self.layout(length).spans)
        return targets.masked_fill(sentinel, IGNORE)

    def measures(self, model: LanguageModel, text: ValidationText) -> dict[str, float]:
        """Return accuracy and unigram baselines; the unigram model knows the share of sentinels in the spans."""
        own, length = self.validation(text.inputs, text.targets), text.inputs.shape[-1]
        shape = self.layout(length)
        text_targets = self._text_of(own.targets, length)
        among = shape.spans / (shape.spans + shape.noise)
        log_p = text.log_p + np.log(1 - among)
        log_p[self.first_id - np.arange(1, shape.spans + 1)] = np.log(among / shape.spans)
        found = accuracy_and_unigram(model, own, text._replace(log_p=log_p), "val_span_accuracy")
        counted = text_targets[text_targets != IGNORE].numpy()
        return {**found, "val_loss_span_text_unigram": float(-text.log_p[counted].mean())}

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        return pairs_ahead(self.layout(length).source, window, stride) / length

    def targets_per_token(self, length: int) -> float:
        shape = self.layout(length)
        return (shape.noise + shape.spans) / length


def span_indices(draws: np.ndarray, shape: SpanLayout) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each token of the source ``[n, source]``, and of the spans with their last sentinel ``[n, noise + spans +
    1]``. Indices below ``shape.text`` are of the text, the others of the sentinels in turn. `draws` are ``[n, text]``."""
    n = len(draws)
    taken = segments(draws[:, : shape.noise - 1], shape.noise, shape.spans)
    left = segments(draws[:, shape.noise - 1 : shape.text - 2], shape.text - shape.noise, shape.spans)
    one, text = np.ones_like(taken), np.broadcast_to(np.arange(shape.text), (n, shape.text))
    sentinels = np.broadcast_to(shape.text + np.arange(shape.spans), taken.shape)
    noise = _alternate(left, taken)
    marks = _alternate(left, one)
    source = np.empty(marks.shape, dtype=np.int64)
    source[marks], source[~marks] = sentinels.ravel(), text[~noise]
    marks = ~_alternate(one, taken)
    spans = np.empty(marks.shape, dtype=np.int64)
    spans[marks], spans[~marks] = sentinels.ravel(), text[noise]
    return source, np.concatenate((spans, np.full((n, 1), shape.text + shape.spans)), -1)


def _alternate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Alternating runs of False and True of these lengths ``[n, k]``, with equal sums in every row: bool ``[n, sum]``."""
    runs = np.stack((left, right), -1).reshape(len(left), -1)
    kinds = np.broadcast_to(np.arange(runs.shape[1]) % 2 == 1, runs.shape)
    return np.repeat(kinds.ravel(), runs.ravel()).reshape(len(left), -1)
