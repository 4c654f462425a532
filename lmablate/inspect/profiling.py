"""Convert a profiler's events into the time of each kind of work in each step.

On a CPU an operator's time is that of its event without nested events, so that the kinds add up to the step.
On a GPU it is that of the kernels it launched; the rest of the step, in which the GPU waits, is the host's.
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

STEP, NORM, UPDATE = "lmablate::step", "lmablate::norm", "lmablate::optimizer"  # names of our own events
WARM = 2
_BACKWARD = "autograd::engine::evaluate_function: "


class Event(NamedTuple):
    """An event from `start` to `end` in nanoseconds, on a thread of the host or (`device`) on a GPU.

    `sequence` numbers the autograd node that a forward operator made, and that a backward one runs; -1: none. For a GPU kernel,
    `linked` is the `number` of the operator that launched it. `flops` are the profiler's."""

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
    """The events of some steps, and for each the seconds by a wall clock and by the caller's clock."""

    events: list[Event]
    wall: list[float]
    seconds: list[float]


class Split(NamedTuple):
    """One step, event by event: names, kinds and nanoseconds.

    `length`: of the whole step, in nanoseconds; `flops`: the profiler's count in tensor contractions."""

    names: list[str]
    kinds: list[str]
    nanoseconds: list[int]
    length: int
    flops: int

    def add(self, name: str, kind: str, nanoseconds: int) -> None:
        """Append one event."""
        self.names.append(name)
        self.kinds.append(kind)
        self.nanoseconds.append(nanoseconds)

    def by_kind(self) -> Counter[str]:
        """Return the nanoseconds of each kind."""
        total: Counter[str] = Counter()
        for kind, own in zip(self.kinds, self.nanoseconds, strict=True):
            total[kind] += own
        return total


def profiled(
    step: Callable[[int], None], steps: int, clock: Callable[[], float], *, gpu: bool, flops: bool = False
) -> Profiled:
    """Run ``step(number)`` under torch's profiler, after warm-up steps, since its memory is new each time."""
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    wall, seconds = [], []
    with profile(activities=activities, with_flops=flops) as run:
        for number in range(WARM):
            step(number)
        for number in range(steps):
            ticked = clock()
            with record_function(STEP):
                began = time.perf_counter()
                step(number)
                wall.append(time.perf_counter() - began)
            seconds.append(clock() - ticked)
    assert run.profiler is not None
    return Profiled([_event(e) for e in run.profiler.kineto_results.events() if not _mirrored(e)], wall, seconds)


def _event(e: Any) -> Event:
    """Return an event of kineto. Torch's own list, ``events()``, takes a hundred times as long to build."""
    device = e.device_type().name != "CPU"
    return Event(
        e.name(), e.start_ns(), e.start_ns() + e.duration_ns(), e.start_thread_id(), device, e.sequence_nr(),
        e.correlation_id(), e.linked_correlation_id(), e.flops(),
    )  # fmt: skip


def _mirrored(e: Any) -> bool:
    """Return True for a host annotation that is repeated on the GPU's timeline."""
    return bool(e.is_user_annotation()) and e.device_type().name != "CPU"


@contextmanager
def marked(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Mark the forward passes of `norms` among the events."""
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
    """Return the steps among `events`, in order."""
    host = sorted(
        (e for e in events if not e.device and not e.linked), key=lambda e: (e.thread, e.start, -e.end, e.number)
    )
    parents, own = _nest(host)
    kinds = [_kind(e.name, region) for e, region in zip(host, _regions(host, parents), strict=True)]
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
        if gpu:  # kernels follow one another on one stream, so the rest is waiting
            step.add("waiting", HOST, max(0, step.length - sum(step.nanoseconds)))
        inside = (e for e, kind in zip(host, kinds, strict=True) if kind == CONTRACTIONS)
        flops = sum(e.flops for e in inside if starts[i] <= e.start <= marks[i].end)
        steps[i] = step._replace(flops=flops)
    return steps


def alike(steps: Sequence[Split]) -> list[Split]:
    """Return the steps with the most common sequence of events; few steps differ."""
    usual, _ = Counter(tuple(step.names) for step in steps).most_common(1)[0]
    return [step for step in steps if tuple(step.names) == usual]


def _nest(host: Sequence[Event]) -> tuple[list[int], list[int]]:
    """Return the index of the event around each (-1: none), and each one's time without nested events."""
    parents, own, around = [], [e.end - e.start for e in host], list[int]()
    for i, e in enumerate(host):
        while around and (host[around[-1]].thread != e.thread or host[around[-1]].end <= e.start):
            around.pop()
        parents.append(around[-1] if around else -1)
        if around:
            own[around[-1]] -= e.end - e.start
        around.append(i)
    return parents, own


def _regions(host: Sequence[Event], parents: Sequence[int]) -> list[str | None]:
    """Return for each event the region it is in: a norm (NORM), the optimizer (UPDATE), or None.

    A backward operator belongs to the region of the forward operator that made its node: the last to begin with its number.
    """
    regions: list[str | None] = []
    backward: list[bool] = []
    forward: dict[int, str | None] = {}
    for e, parent in zip(host, parents, strict=True):
        backward.append(e.name.startswith(_BACKWARD) or (parent >= 0 and backward[parent]))
        around = regions[parent] if parent >= 0 else None
        regions.append(e.name if e.name in (NORM, UPDATE) else around)
        if e.sequence >= 0 and not backward[-1]:
            forward[e.sequence] = regions[-1]
    for i, (e, parent) in enumerate(zip(host, parents, strict=True)):
        if e.name.startswith(_BACKWARD):
            regions[i] = forward.get(e.sequence)
        elif backward[i]:
            regions[i] = regions[parent]
    return regions


def _kind(name: str, region: str | None) -> str:
    kind = kind_of(name)
    if region == UPDATE:
        return OPTIMIZER
    return NORMALISATION if region == NORM and kind in (POINTWISE, MOVEMENT) else kind


def _kernel_kind(kernel: Event, launched: Mapping[int, str]) -> str:
    """Return the kind of the operator that launched a kernel; if there is none, or a mere wrapper, that of the kernel's name."""
    kind = launched.get(kernel.linked, OTHER)
    if kind not in (HOST, OTHER):
        return kind
    named = kind_of(kernel.name)
    return named if named != HOST else OTHER
