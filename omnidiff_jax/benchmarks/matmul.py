"""The ceilings of a program: what this device reaches on plain matrix products and copies, measured in the same run."""

import time

import jax
import jax.numpy as jnp

# Square sizes tried; the best rate is the ceiling. Large enough that launching costs nothing.
SIZES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 16384), "tpu": (4096, 8192, 16384)}


def matmul_flops(dtype: str, device: jax.Device | None = None, seconds: float = 1.0) -> float:
    """FLOP/s of the fastest square matrix product, float32 sums.

    Args:
        dtype: of the factors.
        device: the first one by default.
        seconds: measured for each size.
    """
    device = device or jax.devices()[0]
    best = 0.0
    for size in SIZES.get(device.platform, SIZES["gpu"]):
        x = jax.device_put(jnp.full((size, size), 0.5, dtype), device)

        @jax.jit
        def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

        multiply(x, x).block_until_ready()
        done, began = 0, time.perf_counter()
        while done < 3 or time.perf_counter() - began < seconds:
            calls = [multiply(x, x) for _ in range(4)]
            calls[-1].block_until_ready()
            done += len(calls)
        best = max(best, 2 * size**3 * done / (time.perf_counter() - began))
    return best


def memory_bandwidth(device: jax.Device | None = None, seconds: float = 1.0) -> float:
    """Bytes a second that a device reads and writes when it copies what no cache holds.

    Args:
        device: the first one by default.
        seconds: measured.
    """
    device = device or jax.devices()[0]
    x = jax.device_put(jnp.ones((1 << 28,), jnp.float32), device)
    copy = jax.jit(lambda a: a + 1.0)
    copy(x).block_until_ready()
    done, began = 0, time.perf_counter()
    while done < 3 or time.perf_counter() - began < seconds:
        copy(x).block_until_ready()
        done += 1
    return 2 * x.nbytes * done / (time.perf_counter() - began)
