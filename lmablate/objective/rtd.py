"""``objective=rtd``: a small generator fills in masked tokens, and the model detects which tokens were replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmablate.objective.base import Batch, ValidationText
from lmablate.objective.likelihood import IGNORE, Loss, cross_entropy
from lmablate.objective.masking import SAMPLES, VALIDATION, count, fractions, raw
from lmablate.objective.mlm import MaskedLM

if TYPE_CHECKING:
    from lmablate.objective.language_model import LanguageModel


class Filled(NamedTuple):
    """A batch after the generator: `text` with its samples ``[B, T]``, which of its tokens were `replaced`, and the `logits` and
    `targets` at the n masked tokens, ``[B, n, V]`` and ``[B, n]``."""

    text: Tensor
    replaced: Tensor
    logits: Tensor
    targets: Tensor


class ReplacedTokens(MaskedLM):
    """Replaced-token detection (ELECTRA, Clark et al. 2020, arXiv 2003.10555, sections 3.1 and 3.2): `mask_share` of the tokens are
    masked for a generator with `generator_share` of the model's width, which shares its token table. Samples of the generator replace
    them, and the model predicts for every token whether it differs from the text's. The loss is the generator's cross entropy plus
    `discriminator_weight` times the mean binary cross entropy of all tokens; the latter is the nats of a run. No gradient passes
    through the samples.

    A sample is where a uniform number falls among the generator's probabilities. These numbers depend on data seed, step and position
    alone.
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
        """Return the batch of whole windows, if there are any."""
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
        *,
        z_loss: Tensor | None = None,
    ) -> Loss:
        own = self.filled(model, inputs, targets, noise)
        if z_loss is None and self.z_loss is not None:
            z_loss = torch.full((), self.z_loss, device=inputs.device)
        generator = cross_entropy(own.logits, own.targets, z_loss)
        nats = F.binary_cross_entropy_with_logits(model(own.text).squeeze(-1).float(), own.replaced.float())
        return Loss(generator.objective + self.weight * nats, nats)

    def filled(self, model: Any, inputs: Tensor, targets: Tensor, noise: Tensor | None) -> Filled:
        """Return the samples of the model's generator, drawn by `noise`."""
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
        kept = wanted == IGNORE  # this text has fewer open tokens
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

    def measures(self, model: LanguageModel, text: ValidationText) -> dict[str, float]:
        """Return the generator's measures as a masked model, and `val_replaced_accuracy` of the model.

        As many tokens as were replaced, those with the largest logits, are called replaced; the accuracy is the fraction that was. By
        chance it is `val_replaced_share`. A model that knows how often each token id was replaced in other text reaches
        `val_replaced_accuracy_unigram`.
        """
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
            "val_replaced_accuracy": precision_of_top(was, torch.cat(logits).numpy()),
            "val_replaced_accuracy_unigram": precision_of_top(was, rates(was, seen)),
            "val_replaced_share": float(was.mean()),
            "val_masked_accuracy": right / len(targets),
            "val_masked_accuracy_unigram": float((targets == text.log_p.argmax()).mean()),
            "val_loss_generator": nats / len(targets),
            "val_loss_generator_unigram": float(-text.log_p[targets].mean()),
        }


def precision_of_top(was: np.ndarray, score: np.ndarray) -> float:
    """Return the precision of the tokens with the largest `score`, as many as `was` has; ties count by chance."""
    n = int(was.sum())
    if not n:
        return float("nan")
    edge = np.partition(score, -n)[-n]
    above, at = score > edge, score == edge
    return float((was[above].sum() + (n - above.sum()) * was[at].mean()) / n)


def rates(was: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return for each token how often its id `was` in the other half of the text, plus one count of the mean rate. The rate in the same
    half would reveal, for a rare token, the token itself."""
    first = np.arange(len(tokens)) < len(tokens) // 2
    out = np.empty(len(tokens))
    for own in (first, ~first):
        n_kinds, mean = int(tokens.max()) + 1, was[~own].mean()
        seen = np.bincount(tokens[~own], minlength=n_kinds)
        found = np.bincount(tokens[~own], weights=was[~own], minlength=n_kinds)
        out[own] = ((found + mean) / (seen + 1))[tokens[own]]
    return out
