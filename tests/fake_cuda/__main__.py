"""Run models on a CUDA device that does not exist, and print what they do there as JSON: ``python tests/fake_cuda stand_in.so``.

Tensors are fake: they have a shape, a dtype and the device ``cuda:0``, and no data. The stand-in (stand_in.cpp) answers the questions that
autograd has for a device. It must be loaded before torch is imported, which is why this is a process of its own.
"""

import ctypes
import importlib.util
import json
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def load(stand_in: str) -> None:
    """Load the stand-in and what it leans on."""
    libraries = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    for path in (libraries / "libc10.so", libraries / "libtorch_cpu.so", stand_in):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    load(sys.argv[1])
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch  # noqa: E402
from test_precision import MORE, OPTIONS, places_of  # noqa: E402
from tiny import SmallText, config  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from variants import variant  # noqa: E402

from lmablate.model import build_model  # noqa: E402
from lmablate.training.trainer import Trainer  # noqa: E402

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)


class Watch(TorchDispatchMode):
    """Notes where the host would wait for the device, and refuses products of two dtypes, which fake tensors allow."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            self.wait(args[0].device.type == "cuda", "a number")
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is aten._pin_memory.default:
            return aten.clone.default(args[0])
        if func is aten._to_copy.default:
            there = torch.device(kwargs.get("device") or args[0].device).type
            self.wait(there != args[0].device.type and not kwargs.get("non_blocking"), f"a copy to {there}")
        if func in (aten.nonzero.default, aten.masked_select.default):
            self.wait(args[0].device.type == "cuda", "a count")
        if func in PRODUCTS:
            dtypes = {x.dtype for x in args if isinstance(x, torch.Tensor)}
            assert len(dtypes) == 1, f"{func} of {dtypes}"
        return func(*args, **kwargs)

    def wait(self, waits, what) -> None:
        if waits:
            ours = [f for f in traceback.extract_stack() if "/lmablate/" in f.filename]
            self.waits[
                f"{what} at {ours[-1].filename.split('/lmablate/')[-1]}:{ours[-1].lineno}" if ours else what
            ] += 1


@contextmanager
def device():
    """A fake GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        yield watch


def waits_of_steps() -> dict[str, int]:
    """The waits of two training steps of the default model, in bf16."""
    cfg = config("trainer.precision=bf16")
    cfg = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"device": "cuda"})})
    model = build_model(cfg)  # of real tensors: fake ones cannot be moved
    with device() as watch:
        trainer = Trainer(model, SmallText(), cfg, folder=None)
        watch.waits.clear()
        for step in range(2):
            trainer._step(step)
    return dict(watch.waits)


def table() -> dict[str, dict[str, list[str]]]:
    """The dtypes by place of every option."""
    cases = {f"{axis}={option}": variant(**{axis: option}) for axis, option in OPTIONS}
    cases |= {words: config(*words.split()) for words in MORE}
    found = {}
    for words, cfg in cases.items():
        model = build_model(cfg)
        with device():
            places = places_of(cfg, model.to("cuda"))
        found[words] = {place: sorted(map(str, dtypes)) for place, dtypes in places.items()}
    return found


if __name__ == "__main__":
    torch.autograd.set_multithreading_enabled(False)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    print(json.dumps({"waits": waits_of_steps(), "table": table()}))
