"""The network of jobs/delay.py in other frameworks: the same examples, features, split and gates.

`manta apply` leaves these alone. `manta run delay-keras --wait` and `manta run delay-jax --wait` train them;
each framework is an extra. Both import it where they use it, so that the project can be read without.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from jobs.delay import delay
from manta import Jax, Keras, Pure

WIDTHS = (192, 96)


def network(config: dict[str, Any]) -> Any:
    """The model of Keras, compiled. Parameters: ``learning_rate``, the highest of the schedule."""
    import keras

    params, shape, steps = config["params"], config["shape"], config["steps"]
    categories = keras.Input((len(shape["categories"]),), dtype="int64", name="categories")
    numbers = keras.Input((shape["numbers"],), name="numbers")
    columns = [
        keras.layers.Embedding(size, min(16, 2 + size // 2))(categories[:, at])
        for at, size in enumerate(shape["categories"])
    ]
    row = keras.layers.concatenate([*columns, keras.ops.clip(numbers, -8, 8)])
    for width in WIDTHS:
        row = keras.layers.Dropout(0.1)(keras.layers.Dense(width, activation="silu")(row))
    model = keras.Model([categories, numbers], keras.layers.Dense(1)(row))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=params["learning_rate"], warmup_steps=max(1, steps // 7)
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=0.01),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    return model


by_keras = delay.replace(
    name="delay-keras",
    fn=network,
    module=None,
    trainer=Keras(cpus=2),
    params={"epochs": 4, "batch": 2048, "learning_rate": 5e-3},
    on_apply=False,
)


def functions(config: dict[str, Any]) -> Pure:
    """What trains in JAX. Parameters: ``learning_rate``, the highest of the schedule."""
    import jax
    import jax.numpy as jnp
    import optax

    params, shape, steps = config["params"], config["shape"], config["steps"]
    embedded = [(size, min(16, 2 + size // 2)) for size in shape["categories"]]
    widths = [sum(width for _, width in embedded) + shape["numbers"], *WIDTHS, 1]

    def init(key: Any) -> Any:
        keys = iter(jax.random.split(key, len(embedded) + len(widths)))
        return {
            "embeddings": [0.05 * jax.random.normal(next(keys), size) for size in embedded],
            "layers": [
                {"w": jax.random.normal(next(keys), (takes, gives)) / takes**0.5, "b": jnp.zeros(gives)}
                for takes, gives in pairwise(widths)
            ],
        }

    def apply(held: Any, categories: Any, numbers: Any, key: Any = None) -> Any:
        columns = [table[categories[:, at]] for at, table in enumerate(held["embeddings"])]
        row = jnp.concatenate([*columns, jnp.clip(numbers, -8, 8)], axis=1)
        *hidden, last = held["layers"]
        for at, layer in enumerate(hidden):
            row = jax.nn.silu(row @ layer["w"] + layer["b"])
            if key is not None:  # dropout, in training
                kept = jax.random.bernoulli(jax.random.fold_in(key, at), 0.9, row.shape)
                row = jnp.where(kept, row / 0.9, 0)
        return row @ last["w"] + last["b"]

    rate = optax.warmup_cosine_decay_schedule(0.0, params["learning_rate"], max(1, steps // 7), steps)
    return Pure(init, apply, optax.adamw(rate, weight_decay=0.01))


by_jax = delay.replace(
    name="delay-jax",
    fn=functions,
    module=None,
    trainer=Jax(cpus=2),
    params={"epochs": 4, "batch": 2048, "learning_rate": 5e-3},
    on_apply=False,
)
