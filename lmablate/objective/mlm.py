"""``objective=mlm``: masked tokens are predicted from all others, before and after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from lmablate.core.errors import ConfigError
from lmablate.objective.base import Batch, Objective, ValidationText
from lmablate.objective.likelihood import IGNORE
from lmablate.objective.masking import TOKENS, VALIDATION, chosen, count, fractions, pairs_ahead, raw
from lmablate.objective.measures import accuracy_and_unigram

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


class MaskedLM(Objective):
    """A masked language model (BERT, Devlin et al. 2018, arXiv 1810.04805, section 3.1): `mask_share` of the tokens of each text are
    chosen and predicted. Of these, `random_share` become any token, `kept_share` stay, and the rest become the mask. Each step draws
    anew, which is RoBERTa's dynamic masking (Liu et al. 2019, arXiv 1907.11692, section 4.1). No window of a text occurs twice here, so
    static masks, drawn once per window, would be the same.

    The text is the targets of ``objective=causal``, each token at the position that predicts it there. `special_id` is the mask; None:
    the one id beyond the tokenizer's.
    """

    looks_ahead: ClassVar[bool] = True
    reads_all: ClassVar[bool] = True
    has_measures: ClassVar[bool] = True

    def __init__(
        self,
        *,
        z_loss: float | None,
        mask_share: float,
        random_share: float,
        kept_share: float,
        special_id: int | None = None,
    ) -> None:
        super().__init__(z_loss=z_loss)
        self.share, self.random, self.kept, self.special_id = mask_share, random_share, kept_share, special_id

    def check(self, context_length: int) -> None:
        if context_length < 2:
            raise ConfigError(
                "model.context_length=1: one of a text's tokens is hidden and told from the others: give at least 2"
            )

    def reserved(self, length: int) -> int:
        return 0 if self.special_id is not None else 1

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1 if self.special_id is None else self.special_id

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        return self.masked(targets, np.ones(targets.shape, dtype=bool), data_seed, step)

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        return self.masked(whole(inputs, targets), (targets != IGNORE).cpu().numpy(), 0, VALIDATION)

    def masked(self, text: Tensor, open_: np.ndarray, data_seed: int, step: int) -> Batch:
        """Mask some of the `open_` tokens of `text` ``[B, T]``; three draws per token. It never waits for a GPU."""
        draws = raw(data_seed, step, TOKENS, text.shape[0], 3 * text.shape[1])
        pick, fate, other = draws.reshape(len(text), 3, -1).swapaxes(0, 1)
        at = chosen(pick, open_, self.share)
        fate = fractions(fate)
        plain = self.vocab_size - self.reserved(text.shape[1])
        masked, replaced = (
            torch.from_numpy(x).to(text.device)
            for x in (at & (fate >= self.random + self.kept), at & (fate < self.random))
        )
        any_token = torch.from_numpy((other % np.uint64(plain)).astype(np.int64)).to(text.device)
        read = torch.where(replaced, any_token, text.masked_fill(masked, self.mask_id))
        targets = text.masked_fill(~torch.from_numpy(at).to(text.device), IGNORE)
        return Batch(read, targets, full_prefix(text))

    def measures(self, model: LanguageModel, text: ValidationText) -> dict[str, float]:
        return accuracy_and_unigram(model, self.validation(text.inputs, text.targets), text, "val_masked_accuracy")

    def keys_ahead(self, length: int, window: int | None, stride: int | None) -> float:
        return mean_keys_ahead(length, window, stride)

    def targets_per_token(self, length: int) -> float:
        return count(self.share, length) / length


def whole(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the tokens of a text ``[..., T]``: its targets, and the inputs where a window is padded."""
    return torch.where(targets == IGNORE, inputs, targets)


def full_prefix(text: Tensor) -> Tensor:
    """Return a prefix ``[B]`` that covers the whole text."""
    return torch.full(text.shape[:-1], text.shape[-1], device=text.device)


def mean_keys_ahead(length: int, window: int | None, stride: int | None) -> float:
    """Return the mean number of later keys that a query reads if every token reads every other."""
    return pairs_ahead(length, window, stride) / length
