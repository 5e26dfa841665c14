"""How a long run is watched: hang watchdog, data stalls, and what happens to a step that went wrong.

The values are `OperationsConfig`'s and `GuardConfig`'s of `omnidiff_jax/training/operations/`, which explain them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    guard = {
        "nonfinite": "skip",  # or "abort", "rewind"
        "spike": "report",  # or "off", "skip", "abort", "rewind"
        "sigmas": 8.0,
        "window": 128,
        "max_in_row": 5,
        "max_rewinds": 3,
    }
    return ConfigDict(
        {
            "guard": ConfigDict(guard),
            "hang_seconds": 1800.0,
            "hang": "report",  # or "abort"
            "stall_share": 0.1,
            "stall_window": 50,
        }
    )
