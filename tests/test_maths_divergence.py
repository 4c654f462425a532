"""When a run counts as diverged, on sequences worked out by hand."""

import math
from functools import cache

from tiny import SmallText, config, request, scaled_model

from lmablate.training.divergence import DivergenceDetector
from lmablate.training.trainer import Trainer


def verdicts(losses, *, initial=5.0, smoothing=0.0, patience=3, norms=None):
    detector = DivergenceDetector(initial_loss=initial, smoothing=smoothing, patience=patience)
    norms = norms or [1.0] * len(losses)
    return [detector.diverged(loss, norm) for loss, norm in zip(losses, norms, strict=True)]


def test_divergence_by_hand():
    assert verdicts([4, math.nan]) == [False, True]
    assert verdicts([4, math.inf]) == [False, True]
    assert verdicts([4, 4], norms=[1.0, math.inf]) == [False, True]
    assert verdicts([4, 4], norms=[math.nan, 1.0]) == [True, False]
    assert verdicts([5, 5, 5, 5]) == [False] * 4  # not above the loss at initialisation
    assert verdicts([4, 6, 6, 6]) == [False, False, False, True]
    assert verdicts([6, 6, 4, 6, 6, 4]) == [False] * 6  # a short rise does not count, nor do two
    assert verdicts([6], patience=1) == [True]


def test_divergence_sees_the_smoothed_loss():
    # The average with smoothing 1/2 of 4, 6, 7, 8 is 4, 5, 6, 7: above 5 from the third on.
    assert verdicts([4, 6, 7, 8], smoothing=0.5, patience=2) == [False, False, False, True]
    # One spike of 9 lifts it to 6.5, 5.25 and 4.6: two steps above.
    assert verdicts([4, 9, 4, 4, 4], smoothing=0.5, patience=3) == [False] * 5
    assert verdicts([4, 9, 4, 4, 4], smoothing=0.5, patience=2) == [False, False, True, False, False]
    # A slow rise of 1 % a step from 4 passes 5 at step 23 and, smoothed with 0.9, about 1 / (1 - 0.9) steps later.
    rise = [4 * 1.01**step for step in range(60)]
    average, above = rise[0], 0
    for step, loss in enumerate(rise):
        average = average if step == 0 else 0.9 * average + 0.1 * loss
        above = above + 1 if average > 5 else 0
        if above == 10:
            break
    assert 23 + 5 + 10 < step < 23 + 12 + 10
    assert verdicts(rise, smoothing=0.9, patience=10).index(True) == step


def test_detector_goes_on_where_it_was_saved():
    losses = [4, 6, 7, 8, 9, 4, 8, 9]
    for cut in range(len(losses)):
        first, second = (DivergenceDetector(initial_loss=5.0, smoothing=0.5, patience=3) for _ in range(2))
        got = [first.diverged(loss, 1.0) for loss in losses[:cut]]
        second.initial_loss = math.nan
        second.restore(first.state())
        assert got + [second.diverged(loss, 1.0) for loss in losses[cut:]] == verdicts(losses, smoothing=0.5)


@cache
def wild(log_every, flush_every=None):
    """A run that diverges: the step, the smoothed loss. `flush_every`: losses are taken from the device in batches."""
    raw = request("trainer.steps=40")
    raw["optim"].update(lr=1.0, grad_clip=None)
    raw["schedule"].update(warmup_fraction=0.9)
    raw["trainer"].update(divergence_patience=3, divergence_smoothing=0.3)
    raw["runtime"].update(log_every=log_every)
    cfg = config(raw=raw)
    trainer = Trainer(scaled_model(cfg), SmallText(), cfg, None)
    if flush_every is None:
        list(trainer.records())
    else:
        trainer._start()
        diverged = False
        while not diverged and trainer.progress.step < 40:
            trainer._step(trainer.progress.step)
            trainer.progress.step += 1
            diverged = trainer.progress.step % flush_every == 0 and trainer._flush()
    return trainer.progress.diverged_at_step, trainer.train_loss


def test_verdict_does_not_depend_on_how_often_a_run_logs():
    assert wild(1)[0] is not None
    assert wild(1)[0] > 3
    assert wild(1) == wild(4) == wild(40) == wild(1, 1) == wild(1, 5) == wild(1, 40)
