"""Torch files of before 1.6, written without torch, as `torch.save` does without its new serialization."""

import collections
import io
import pickle
import sys
import types

import numpy as np
import pytest

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
_KINDS = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "<i8": "LongStorage"}


class _Storage:
    def __init__(self, key, values, count):
        self.key, self.values, self.count = key, values, count


class _Tensor:
    def __init__(self, storage, shape, strides, offset=0):
        self.state = (storage, offset, tuple(shape), tuple(strides), False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.state


def tensor(key, values, *, shape=None, strides=None, count=None, offset=0):
    """A tensor that says of itself what it is told to, where that is not what it is."""
    packed = tuple(step // values.itemsize for step in values.strides)
    storage = _Storage(key, values, values.size if count is None else count)
    return _Tensor(storage, values.shape if shape is None else shape, packed if strides is None else strides, offset)


def content(state, keys=None, behind=b""):
    """The file's bytes, of name -> tensor or anything else."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in _KINDS.values():
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*state):
        raise AssertionError("called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2, torch._utils = _rebuild_tensor_v2, utils
    found, out = {}, io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, _Storage):
                return None
            found[thing.key] = thing
            kind = getattr(torch, _KINDS[thing.values.dtype.str])
            return "storage", kind, thing.key, "cpu", thing.count, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        for value in (MAGIC, VERSION, MACHINE, state):
            Pickler(out, protocol=2).dump(value)
    pickle.dump(sorted(found) if keys is None else keys, out, protocol=2)
    for _, storage in sorted(found.items()):
        values = storage.values.ravel(order="K")
        out.write(storage.values.size.to_bytes(8, "little") + values.tobytes())
    return out.getvalue() + behind


def write(path, tensors):
    """Of name -> array."""
    state = collections.OrderedDict((name, tensor(str(n), value)) for n, (name, value) in enumerate(tensors.items()))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    path.write_bytes(content(state))
    return path


def arrays(rng=None):
    rng = rng or np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 2, 2), np.float32),
        "a.bias": rng.standard_normal(3).astype(np.float64),
        "turned": np.asfortranarray(rng.standard_normal((4, 3), np.float32)),
        "half": rng.standard_normal(2).astype(np.float16),
        "count": np.array(7, np.int64),
    }
