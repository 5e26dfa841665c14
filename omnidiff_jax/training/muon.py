"""Muon for the matrices of the backbone's layers, AdamW (with Nesterov momentum) for everything else.

Muon (Jordan et al. 2024; `optax.contrib.muon`) orthogonalises the momentum of a matrix, so that every direction of it
learns equally fast. The paper trains with AdamW; a model that has minutes, not days, learns several times more from a
sample this way.
"""

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers

from omnidiff_jax.errors import UserError

# What each kernel reads from and writes to; the first axis is the layer.
_AXES: dict[str, MuonDimensionNumbers] = {
    "backbone/layers/attention/query/kernel": MuonDimensionNumbers((1,), (2, 3)),
    "backbone/layers/attention/key/kernel": MuonDimensionNumbers((1,), (2, 3)),
    "backbone/layers/attention/value/kernel": MuonDimensionNumbers((1,), (2, 3)),
    "backbone/layers/attention/out/kernel": MuonDimensionNumbers((1, 2), (3,)),
    "backbone/layers/mlp/gate/kernel": MuonDimensionNumbers((1,), (2,)),
    "backbone/layers/mlp/up/kernel": MuonDimensionNumbers((1,), (2,)),
    "backbone/layers/mlp/down/kernel": MuonDimensionNumbers((1,), (2,)),
}


def muon(
    schedule: optax.Schedule,
    scale: float,
    steps: int,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mu_dtype: Any,
) -> optax.GradientTransformation:
    """The transformation, over a flat dict of "/"-joined parameter path -> array.

    Args:
        schedule: learning rate of what AdamW trains.
        scale: learning rate of the matrices, as a multiple of that one.
        steps: of the Newton-Schulz iteration; fewer cost less and leave small singular values small.
        b1, b2, eps, weight_decay: AdamW's; the decay is the matrices' too.
        mu_dtype: dtype of first moments and momenta.

    Raises:
        UserError (from `init`): no parameter is a matrix of the backbone.
    """

    def dimensions(params: dict[str, Any]) -> dict[str, MuonDimensionNumbers | None]:
        found = {name: _AXES.get(name) for name in params}
        if not any(found.values()):
            raise UserError("config.optimizer.algorithm = 'muon' finds no layers of the backbone to train; use 'adamw'")
        return found

    return optax.contrib.muon(
        lambda step: scale * schedule(step),
        ns_steps=steps,
        mu_dtype=mu_dtype,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        adam_weight_decay=weight_decay,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=dimensions,
    )
