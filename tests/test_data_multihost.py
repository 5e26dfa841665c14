"""Two processes of a pod load the rows of one process's run, and gather one state that either kind of run resumes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from data_world import corpus

from omnidiff_jax.data.config import DataConfig
from omnidiff_jax.data.hosting import HostBatches
from omnidiff_jax.data.loader import Loader
from omnidiff_jax.data.packing import PackingConfig
from omnidiff_jax.speech_frames import SpeechLayout

CONFIG = DataConfig(
    seed=5, batch_size=8, streams=4, max_tail_pads=3, packing=PackingConfig(64, 32, 8, 3, speech=SpeechLayout(width=3))
)
HOST = """
import json, sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
from data_world import corpus
from test_data_multihost import CONFIG
from omnidiff_jax.data.loader import Loader

mesh = jax.make_mesh((2, 2), ("data", "tensor"))
with Loader(corpus(), CONFIG, NamedSharding(mesh, PartitionSpec("data"))) as loader:
    for _ in range(3):
        batch = next(loader)
    shards = {shard.index[0].start or 0: np.asarray(shard.data) for shard in batch.inputs.tokens.addressable_shards}
    local = np.concatenate([shards[start] for start in sorted(shards)])
    print(json.dumps({"tokens": local.tolist(), "state": loader.get_state(), "shape": batch.inputs.tokens.shape}))
"""


@pytest.mark.multihost
def test_two_processes_are_one_run():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(rank), port],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=300) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], [errors[-2000:] for _, errors in outputs]
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    single = HostBatches(corpus(), CONFIG)
    batches = [next(single) for _ in range(3)]
    np.testing.assert_array_equal(first["tokens"] + second["tokens"], batches[-1].inputs.tokens)
    assert first["shape"] == [8, 64]
    assert first["state"] == second["state"] == json.loads(json.dumps(single.get_state()))
    with Loader(corpus(), CONFIG) as resumed:
        resumed.set_state(first["state"])
        jax.tree.map(np.testing.assert_array_equal, next(resumed), next(single))
