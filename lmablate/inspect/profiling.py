"""From a profiler's events to the time of each kind of work in each step.

On a CPU an operator's time is that of its event without the events inside it, so that the kinds divide a step without rest.
On a GPU it is that of the kernels it launched; what is left of the step, in which the GPU waits, is the host's.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from lmablate.inspect.operators import CONTRACTIONS, HOST, MOVEMENT, NORMALISATION, OPTIMIZER, OTHER, POINTWISE, kind_of

if TYPE_CHECKING:
    from torch import nn

STEP, NORM, UPDATE = "lmablate::step", "lmablate::norm", "lmablate::optimizer"  # marks among the events
WARM = 2
_BACKWARD = "autograd::engine::evaluate_function: "


class Event(NamedTuple):
    """What happened, from `start` to `end` in nanoseconds, on a thread of the host or (`device`) on a GPU.

    `sequence` numbers the autograd node that a forward operator made, and that a backward one runs; -1: none. A GPU's
    kernel names in `linked` the `number` of the operator that launched it. `flops` are the profiler's.
    """

    name: str
    start: int
    end: int
    thread: int
    device: bool
    sequence: int
    number: int
    linked: int
    flops: int


class Profiled(NamedTuple):
    """The events of some steps, and for each the seconds of a wall clock around it and those of the caller's clock."""

    events: list[Event]
    wall: list[float]
    seconds: list[float]


class Split(NamedTuple):
    """One step, event by event: names, kinds and nanoseconds; its whole length, and the FLOPs that the profiler counted in
    tensor contractions."""

    names: list[str]
    kinds: list[str]
    nanoseconds: list[int]
    length: int
    flops: int

    def add(self, name: str, kind: str, nanoseconds: int) -> None:
        self.names.append(name)
        self.kinds.append(kind)
        self.nanoseconds.append(nanoseconds)

    def by_kind(self) -> Counter[str]:
        """Nanoseconds of each kind."""
        total: Counter[str] = Counter()
        for kind, own in zip(self.kinds, self.nanoseconds, strict=True):
            total[kind] += own
        return total


def profiled(
    step: Callable[[int], None], steps: int, clock: Callable[[], float], *, gpu: bool, flops: bool = False
) -> Profiled:
    """Run ``step(number)`` under torch's profiler, after steps that warm it up: its memory is new each time."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    wall, seconds = [], []
    with profile(activities=activities, with_flops=flops) as found:
        for number in range(WARM):
            step(number)
        for number in range(steps):
            ticked = clock()
            with record_function(STEP):
                began = time.perf_counter()
                step(number)
                wall.append(time.perf_counter() - began)
            seconds.append(clock() - ticked)
    assert found.profiler is not None
    return Profiled([_event(e) for e in found.profiler.kineto_results.events() if not _mirrored(e)], wall, seconds)


def _event(e: Any) -> Event:
    """Torch's own list, `found.events()`, takes a hundred times as long to make."""
    device = e.device_type().name != "CPU"
    return Event(
        e.name(), e.start_ns(), e.start_ns() + e.duration_ns(), e.start_thread_id(), device, e.sequence_nr(),
        e.correlation_id(), e.linked_correlation_id(), e.flops(),
    )  # fmt: skip


def _mirrored(e: Any) -> bool:
    """A mark of the host's, drawn a second time on the GPU's line."""
    return bool(e.is_user_annotation()) and e.device_type().name != "CPU"


@contextmanager
def marked(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Marks the forward passes of `norms` among the events."""
    import torch

    open_: list[torch.profiler.record_function] = []

    def enter(*_: object) -> None:
        open_.append(torch.profiler.record_function(NORM))
        open_[-1].__enter__()

    def leave(*_: object) -> None:
        open_.pop().__exit__(None, None, None)

    handles = [
        hook for norm in norms for hook in (norm.register_forward_pre_hook(enter), norm.register_forward_hook(leave))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def split(events: Sequence[Event], *, gpu: bool) -> list[Split]:
    """The steps among `events`, in their order."""
    host = sorted(
        (e for e in events if not e.device and not e.linked), key=lambda e: (e.thread, e.start, -e.end, e.number)
    )
    parents, own = _nest(host)
    kinds = [_kind(e.name, place) for e, place in zip(host, _places(host, parents), strict=True)]
    marks = sorted((e for e in host if e.name == STEP), key=lambda e: e.start)
    if gpu:
        launched = {e.number: kind for e, kind in zip(host, kinds, strict=True)}
        kernels = sorted((e for e in events if e.device), key=lambda e: e.start)
        timed = [(e, _kernel_kind(e, launched), e.end - e.start) for e in kernels]
    else:
        timed = [x for x in zip(host, kinds, own, strict=True) if marks and x[0].thread == marks[0].thread]
    steps = [Split([], [], [], mark.end - mark.start, 0) for mark in marks]
    starts = [mark.start for mark in marks]
    for e, kind, nanoseconds in timed:
        at = bisect_right(starts, e.start) - 1
        if at >= 0 and e.start <= marks[at].end:
            steps[at].add(e.name, kind, nanoseconds)
    for i, step in enumerate(steps):
        if gpu:  # kernels follow one another on one stream, so that what is left is waiting
            step.add("waiting", HOST, max(0, step.length - sum(step.nanoseconds)))
        inside = (e for e, kind in zip(host, kinds, strict=True) if kind == CONTRACTIONS)
        flops = sum(e.flops for e in inside if starts[i] <= e.start <= marks[i].end)
        steps[i] = step._replace(flops=flops)
    return steps


def alike(steps: Sequence[Split]) -> list[Split]:
    """The steps that went through the same events, which nearly all do; the others are left out."""
    usual, _ = Counter(tuple(step.names) for step in steps).most_common(1)[0]
    return [step for step in steps if tuple(step.names) == usual]


def _nest(host: Sequence[Event]) -> tuple[list[int], list[int]]:
    """The place of the event around each (-1: none), and each one's time without the events in it."""
    parents, own, around = [], [e.end - e.start for e in host], list[int]()
    for i, e in enumerate(host):
        while around and (host[around[-1]].thread != e.thread or host[around[-1]].end <= e.start):
            around.pop()
        parents.append(around[-1] if around else -1)
        if around:
            own[around[-1]] -= e.end - e.start
        around.append(i)
    return parents, own


def _places(host: Sequence[Event], parents: Sequence[int]) -> list[str | None]:
    """Is an event in a norm (NORM), in the optimizer (UPDATE), or neither? A backward operator is where the forward
    operator was that made its node: the last to begin of those that carry its number."""
    places: list[str | None] = []
    backward: list[bool] = []
    forward: dict[int, str | None] = {}
    for e, parent in zip(host, parents, strict=True):
        backward.append(e.name.startswith(_BACKWARD) or (parent >= 0 and backward[parent]))
        around = places[parent] if parent >= 0 else None
        places.append(e.name if e.name in (NORM, UPDATE) else around)
        if e.sequence >= 0 and not backward[-1]:
            forward[e.sequence] = places[-1]
    for i, (e, parent) in enumerate(zip(host, parents, strict=True)):
        if e.name.startswith(_BACKWARD):
            places[i] = forward.get(e.sequence)
        elif backward[i]:
            places[i] = places[parent]
    return places


def _kind(name: str, place: str | None) -> str:
    kind = kind_of(name)
    if place == UPDATE:
        return OPTIMIZER
    return NORMALISATION if place == NORM and kind in (POINTWISE, MOVEMENT) else kind


def _kernel_kind(kernel: Event, launched: Mapping[int, str]) -> str:
    """That of the operator that launched it; where none did, or one that is only a wrapper, that of its own name."""
    kind = launched.get(kernel.linked, OTHER)
    if kind not in (HOST, OTHER):
        return kind
    named = kind_of(kernel.name)
    return named if named != HOST else OTHER
