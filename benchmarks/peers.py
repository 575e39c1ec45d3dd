"""How other libraries train the same network on the same rows; the training rows per second.

    python benchmarks/peers.py NAME WIDTH ROWS SECONDS BATCH...    # one JSON object on stdout

A network 10-WIDTH-1 with ReLU, mean squared error, Adam, shuffled batches, one thread. Each epoch
counts shuffling and gathering, after a first one that is not counted. Needs
benchmarks/requirements-peers.txt and nothing of the job.
"""

# mypy: ignore-errors
# (these libraries are not in the environment that the types are checked in)

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

FEATURES, RATE = 10, 0.01


def rows_per_second(epoch: Callable[[], int], seconds: float) -> float:
    """`epoch` trains and returns how many rows; called until `seconds` have gone by."""
    epoch()
    start, rows = time.perf_counter(), 0
    while True:
        rows += epoch()
        passed = time.perf_counter() - start
        if passed >= seconds:
            return rows / passed


def table(rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, FEATURES), dtype=np.float32)
    return x, np.sin(x[:, :1]) + random.standard_normal((rows, 1), dtype=np.float32)


def torch_network(width: int):
    import torch

    torch.set_num_threads(1)
    layers = (torch.nn.Linear(FEATURES, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    network = torch.nn.Sequential(*layers)
    return torch, network, torch.optim.Adam(network.parameters(), lr=RATE)


def primer(width: int, rows: int, batch: int) -> Callable[[], int]:
    """torch on all rows at once, as a first lesson writes it; `batch` is then their number."""
    torch, network, optimizer = torch_network(width)
    x, y = (torch.from_numpy(v[:batch]) for v in table(rows))

    def epoch() -> int:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x), y).backward()
        optimizer.step()
        return batch

    return epoch


def eager(width: int, rows: int, batch: int) -> Callable[[], int]:
    """torch on tensors, its rows gathered by a permutation."""
    torch, network, optimizer = torch_network(width)
    x, y = (torch.from_numpy(v) for v in table(rows))

    def epoch() -> int:
        done = 0
        # What is slow by the batch need not be waited for.
        for chosen in islice(torch.randperm(rows).split(batch), 400):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            done += len(chosen)
        return done

    return epoch


def dataloader(width: int, rows: int, batch: int) -> Callable[[], int]:
    """torch with its DataLoader, in the same process."""
    torch, network, optimizer = torch_network(width)
    x, y = (torch.from_numpy(v) for v in table(rows))
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)

    def epoch() -> int:
        done = 0
        for x, y in islice(loader, max(1, 30_000 // batch)):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(x), y).backward()
            optimizer.step()
            done += len(x)
        return done

    return epoch


def lightning(width: int, rows: int, batch: int) -> Callable[[], int]:
    """Lightning's Trainer, without logger, checkpoint and bar, on a DataLoader."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    torch, network, _ = torch_network(width)
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    few = min(rows, max(batch, 30_000))
    x, y = (torch.from_numpy(v[:few]) for v in table(rows))

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch, _):
            return torch.nn.functional.mse_loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=RATE)

    module = Module()
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)

    def epoch() -> int:
        off = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        Trainer(max_epochs=1, accelerator="cpu", **off).fit(module, loader)
        return few

    return epoch


def keras(width: int, rows: int, batch: int) -> Callable[[], int]:
    """Keras on JAX, its `fit` on arrays."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    x, y = table(rows)
    network = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(RATE), loss="mse")
    few = min(rows, 400 * batch)

    def epoch() -> int:
        network.fit(x[:few], y[:few], batch_size=batch, epochs=1, verbose=0, shuffle=True)
        return few

    return epoch


def sklearn(width: int, rows: int, batch: int) -> Callable[[], int]:
    """scikit-learn's MLPRegressor, one epoch a call (`warm_start`)."""
    import warnings

    warnings.simplefilter("ignore")
    from sklearn.neural_network import MLPRegressor

    few = min(rows, 400 * batch)
    x, y = (v[:few] for v in table(rows))
    network = MLPRegressor(
        hidden_layer_sizes=(width,),
        batch_size=batch,
        learning_rate_init=RATE,
        max_iter=1,
        warm_start=True,
        alpha=0.0,
    )

    def epoch() -> int:
        network.fit(x, y[:, 0])
        return few

    return epoch


def jax(width: int, rows: int, batch: int) -> Callable[[], int]:
    """JAX and Optax: a whole epoch, its gathers too, in one compiled scan."""
    import jax
    import jax.numpy as jnp
    import optax

    x, y = (jnp.asarray(v) for v in table(rows))
    keys = jax.random.split(jax.random.key(0), 2)
    weights = [
        jax.random.uniform(keys[0], (FEATURES, width), minval=-0.3, maxval=0.3),
        jnp.zeros(width),
        jax.random.uniform(keys[1], (width, 1), minval=-0.1, maxval=0.1),
        jnp.zeros(1),
    ]
    optimizer = optax.adam(RATE)
    state = optimizer.init(weights)

    def loss(weights, x, y):
        hidden = jax.nn.relu(x @ weights[0] + weights[1])
        return jnp.mean((hidden @ weights[2] + weights[3] - y) ** 2)

    def step(carry, chosen):
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights, x[chosen], y[chosen])
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, change), state), value

    steps = rows // batch

    @jax.jit
    def whole(carry, order):
        return jax.lax.scan(step, carry, order)

    carry, random = (weights, state), np.random.default_rng(1)

    def epoch() -> int:
        nonlocal carry
        # NumPy's: jax.random.permutation sorts, which takes five times as long as the training.
        order = random.permutation(rows)[: steps * batch].reshape(steps, batch)
        carry, _ = whole(carry, jnp.asarray(order, dtype=jnp.int32))
        jax.block_until_ready(carry)
        return steps * batch

    return epoch


PEERS = {f.__name__: f for f in (primer, eager, dataloader, lightning, keras, sklearn, jax)}


def main(name: str, width: str, rows: str, seconds: str, *batches: str) -> Iterator[float]:
    for batch in batches:
        yield rows_per_second(PEERS[name](int(width), int(rows), int(batch)), float(seconds))


if __name__ == "__main__":
    print(json.dumps(list(main(*sys.argv[1:]))))
