"""Networks of Keras and of JAX, made as a project makes them. The parameter ``which`` makes them
misbehave."""

from __future__ import annotations

from typing import Any

from manta import Pure


def by_keras(config: dict[str, Any]) -> Any:
    """Embeddings and numbers through a hidden layer, with what keeps a state of its own: dropout, batch
    normalization, moments of the optimizer and a schedule."""
    import keras

    params, shape = config["params"], config["shape"]
    which, outputs = params.get("which"), shape.get("outputs", 1)
    if which == "raises":
        raise KeyError("nothing to be made")
    if which == "half":
        keras.config.set_dtype_policy("mixed_float16")
    names = (None, None) if which == "without names" else ("categories", "numbers")
    categories = keras.Input((len(shape["categories"]),), dtype="int64", name=names[0])
    numbers = keras.Input((shape["numbers"],), name=names[1])
    columns = [
        keras.layers.Embedding(size, 4)(categories[:, at]) for at, size in enumerate(shape["categories"])
    ]
    hidden = keras.layers.concatenate([*columns, keras.ops.clip(numbers, -8, 8)])
    hidden = keras.layers.Dense(24, activation="silu")(hidden)
    hidden = keras.layers.BatchNormalization(momentum=params.get("momentum", 0.99))(hidden)
    hidden = keras.layers.Dropout(0.05)(hidden)
    ends = "sigmoid" if which == "sigmoid" else None
    logits = keras.layers.Dense(2 if which == "wide" else outputs, activation=ends)(hidden)
    made = keras.Model([categories, numbers], logits)
    if which == "nothing":
        return None
    if which != "not compiled":
        loss: Any = keras.losses.BinaryCrossentropy(from_logits=which != "of probabilities")
        if outputs > 1:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if params.get("squares"):
            loss = "mean_squared_error"
        rate = keras.optimizers.schedules.CosineDecay(params.get("rate", 0.01), config["steps"], alpha=0.1)
        made.compile(keras.optimizers.Adam(rate, use_ema=params.get("averaged", False)), loss)
    return made


def by_keras_subclass(config: dict[str, Any]) -> Any:
    """Takes the numbers alone; gives logits [n]."""
    import keras

    class Linear(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs["numbers"])[:, 0]

    made = Linear()
    made.compile(keras.optimizers.SGD(0.5), keras.losses.BinaryCrossentropy(from_logits=True))
    return made


def by_jax(config: dict[str, Any]) -> Any:
    """Embeddings and numbers through a hidden layer, with dropout, and an optimizer with moments and a
    schedule."""
    import jax
    import jax.numpy as jnp
    import optax

    params, shape = config["params"], config["shape"]
    which, outputs = params.get("which"), shape.get("outputs", 1)
    width = 4 * len(shape["categories"]) + shape["numbers"]
    if which == "raises":
        raise KeyError("nothing to be made")

    def init(key: Any) -> Any:
        first, second, third = jax.random.split(key, 3)
        made = {
            "embeddings": [
                0.05 * jax.random.normal(jax.random.fold_in(first, at), (size, 4))
                for at, size in enumerate(shape["categories"])
            ],
            "hidden": {"w": jax.random.normal(second, (width, 24)) / width**0.5, "b": jnp.zeros(24)},
            "last": {"w": jax.random.normal(third, (24, outputs)) / 5, "b": jnp.zeros(outputs)},
        }
        if which == "a function among them":
            made["ends"] = jax.nn.silu
        if which == "half":
            made["last"]["b"] = jnp.zeros(outputs, jnp.bfloat16)
        return made

    def apply(held: Any, categories: Any, numbers: Any, key: Any = None) -> Any:
        columns = [table[categories[:, at]] for at, table in enumerate(held["embeddings"])]
        row = jnp.concatenate([*columns, jnp.clip(numbers, -8, 8)], axis=1)
        row = jax.nn.silu(row @ held["hidden"]["w"] + held["hidden"]["b"])
        if key is not None:
            row = jnp.where(jax.random.bernoulli(key, 0.95, row.shape), row / 0.95, 0)
        logits = row @ held["last"]["w"] + held["last"]["b"]
        return logits.sum() if which == "one for all" else logits

    def absolute(logits: Any, labels: Any) -> Any:
        apart = jnp.abs(logits - labels)
        return apart.mean() if which == "one loss for all" else apart

    optimizer = optax.adamw(optax.cosine_decay_schedule(params.get("rate", 0.01), config["steps"], 0.1))
    if which == "nothing":
        return None
    if which == "no optimizer":
        optimizer = "adam"
    return Pure(
        init, apply, optimizer, absolute if "absolute" in params or which == "one loss for all" else None
    )


def by_jax_alone(config: dict[str, Any]) -> Any:
    """Takes the numbers alone, gives logits [n], and has an optimizer of its own: no library but JAX."""
    import jax.numpy as jnp

    class Descent:
        def init(self, params: Any) -> Any:
            return ()

        def update(self, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
            return tuple(-0.5 * each for each in gradients), state

    def init(key: Any) -> Any:
        return jnp.zeros(config["shape"]["numbers"]), jnp.zeros(())

    def apply(params: Any, categories: Any, numbers: Any) -> Any:
        return numbers @ params[0] + params[1]

    return Pure(init, apply, Descent())


def by_flax(config: dict[str, Any]) -> Any:
    """A module of Flax, as it is."""
    import flax.linen as nn
    import jax.numpy as jnp
    import optax

    shape = config["shape"]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, categories: Any, numbers: Any) -> Any:
            columns = [nn.Embed(size, 4)(categories[:, at]) for at, size in enumerate(shape["categories"])]
            row = jnp.concatenate([*columns, jnp.clip(numbers, -8, 8)], axis=1)
            return nn.Dense(1)(nn.relu(nn.Dense(16)(row)))

    module = Net()
    rows = jnp.zeros((1, len(shape["categories"])), jnp.int32), jnp.zeros((1, shape["numbers"]))
    return Pure(lambda key: module.init(key, *rows), module.apply, optax.adam(0.02))
