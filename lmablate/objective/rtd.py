"""``objective=rtd``: a small generator fills hidden tokens in, and the model tells which tokens were replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.objective.base import Batch, Held
from lmablate.objective.likelihood import IGNORE, Loss, cross_entropy
from lmablate.objective.masking import SAMPLES, VALIDATION, count, fractions, raw
from lmablate.objective.mlm import MaskedLM

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


class Filled(NamedTuple):
    """What a generator makes of a batch: the text with its samples ``[B, T]``, which of its tokens are not the text's, and its
    logits and targets at the n hidden tokens, ``[B, n, V]`` and ``[B, n]``."""

    text: Tensor
    replaced: Tensor
    logits: Tensor
    targets: Tensor


class ReplacedTokens(MaskedLM):
    """Replaced-token detection (ELECTRA, Clark et al. 2020, arXiv 2003.10555, sections 3.1 and 3.2): `mask_share` of the tokens are
    hidden from a generator with `generator_share` of the model's width, which shares its token table; a sample of what it
    gives takes their place, and the model says of every token whether it is another than the text's. The loss is the
    generator's cross entropy plus `discriminator_weight` times the mean binary one of all tokens; the latter is the nats of a
    run. No gradient passes through the samples.

    A sample is where a uniform number falls among the generator's probabilities. These numbers hang on the data seed, the step
    and the place alone.
    """

    detects: ClassVar[bool] = True
    solo: ClassVar[bool] = True

    def __init__(
        self,
        *,
        z_loss: float | None,
        mask_share: float,
        generator_share: float,
        discriminator_weight: float,
        special_id: int | None = None,
    ) -> None:
        super().__init__(z_loss=z_loss, mask_share=mask_share, random_share=0.0, kept_share=0.0, special_id=special_id)
        self.weight = discriminator_weight
        self.generator_share = generator_share

    def batch(self, inputs: Tensor, targets: Tensor, *, data_seed: int, step: int) -> Batch:
        return self._noisy(super().batch(inputs, targets, data_seed=data_seed, step=step), data_seed, step)

    def validation(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Of whole windows, where there are any."""
        filled = (targets != IGNORE).all(-1)
        if filled.any() and not filled.all():
            inputs, targets = inputs[filled], targets[filled]
        return self._noisy(super().validation(inputs, targets), 0, VALIDATION)

    @staticmethod
    def _noisy(batch: Batch, data_seed: int, step: int) -> Batch:
        noise = fractions(raw(data_seed, step, SAMPLES, *batch.inputs.shape))
        return batch._replace(noise=torch.from_numpy(noise).to(batch.inputs.device))

    def forward(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        prefix: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Loss:
        own = self.filled(model, inputs, targets, noise)
        z_loss = None if self.z_loss is None else torch.full((), self.z_loss, device=inputs.device)
        generator = cross_entropy(own.logits, own.targets, z_loss)
        nats = F.binary_cross_entropy_with_logits(model(own.text).squeeze(-1).float(), own.replaced.float())
        return Loss(generator.objective + self.weight * nats, nats)

    def filled(self, model: Any, inputs: Tensor, targets: Tensor, noise: Tensor | None) -> Filled:
        """The samples of the model's generator, drawn by `noise`."""
        assert noise is not None
        n = count(self.share, inputs.shape[-1])
        at = torch.argsort((targets != IGNORE).byte(), dim=-1, descending=True, stable=True)[..., :n]
        logits = model.generator_logits(inputs, at).float()
        wanted = targets.gather(-1, at)
        with torch.no_grad():
            probabilities = logits.double().softmax(-1).cumsum(-1)
            draws = (noise.gather(-1, at) * probabilities[..., -1]).unsqueeze(-1)
            samples = torch.searchsorted(probabilities, draws, right=True).squeeze(-1)
            samples = samples.clamp(max=logits.shape[-1] - 1)
        kept = wanted == IGNORE  # fewer were open
        text = inputs.scatter(-1, at, torch.where(kept, inputs.gather(-1, at), samples))
        replaced = torch.zeros_like(inputs, dtype=torch.bool).scatter(-1, at, (samples != wanted) & ~kept)
        return Filled(text, replaced, logits, wanted)

    def summed(self, model: LanguageModel, parts: Sequence[Batch]) -> list[float]:
        sums = []
        for part in parts:
            own = self.filled(model, part.inputs, part.targets, part.noise)
            logits = model(own.text).squeeze(-1).float()
            sums.append(float(F.binary_cross_entropy_with_logits(logits, own.replaced.float(), reduction="sum")))
        return sums

    def counted(self, batch: Batch) -> int:
        return batch.inputs.numel()

    def measures(self, model: LanguageModel, text: Held) -> dict[str, float]:
        """Of the generator as of a masked model; and of the model `val_replaced_accuracy`: as many tokens are called replaced as
        were, those with the largest logits, and this is the share that was. Blindly that is `val_replaced_share`; a model that
        knows of each kind of token how often it was replaced in other text reaches `val_replaced_accuracy_unigram`."""
        whole = self.validation(text.inputs, text.targets)
        logits, replaced, tokens, right, nats = [], [], [], 0, 0.0
        for part in (piece.to(text.device) for piece in whole.split(text.batch_size)):
            own = self.filled(model, part.inputs, part.targets, part.noise)
            logits.append(model(own.text).squeeze(-1).float().cpu().flatten())
            replaced.append(own.replaced.cpu().flatten())
            tokens.append(own.text.cpu().flatten())
            right += int((own.logits.argmax(-1) == own.targets).sum())
            each = F.cross_entropy(
                own.logits.flatten(0, -2), own.targets.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            nats += float(each)
        targets = whole.targets[whole.targets != IGNORE].numpy()
        was, seen = torch.cat(replaced).numpy(), torch.cat(tokens).numpy()
        return {
            "val_replaced_accuracy": found_of(was, torch.cat(logits).numpy()),
            "val_replaced_accuracy_unigram": found_of(was, rates(was, seen)),
            "val_replaced_share": float(was.mean()),
            "val_masked_accuracy": right / len(targets),
            "val_masked_accuracy_unigram": float((targets == text.log_p.argmax()).mean()),
            "val_loss_generator": nats / len(targets),
            "val_loss_generator_unigram": float(-text.log_p[targets].mean()),
        }


def found_of(was: np.ndarray, score: np.ndarray) -> float:
    """Of the tokens with the largest `score`, as many as `was` has, the share that `was`; among equal scores by chance."""
    n = int(was.sum())
    if not n:
        return float("nan")
    edge = np.partition(score, -n)[-n]
    above, at = score > edge, score == edge
    return float((was[above].sum() + (n - above.sum()) * was[at].mean()) / n)


def rates(was: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """For each token how often its kind `was` in the other half of the text, one more of the mean rate counted in: a rate of the
    same half would know of a rare token what became of this very one."""
    first = np.arange(len(tokens)) < len(tokens) // 2
    out = np.empty(len(tokens))
    for own in (first, ~first):
        n_kinds, mean = int(tokens.max()) + 1, was[~own].mean()
        seen = np.bincount(tokens[~own], minlength=n_kinds)
        found = np.bincount(tokens[~own], weights=was[~own], minlength=n_kinds)
        out[own] = ((found + mean) / (seen + 1))[tokens[own]]
    return out
