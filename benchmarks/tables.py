"""The job and scikit-learn's MLP on the same rows of real tables, which scikit-learn ships.

    OMP_NUM_THREADS=1 python -m benchmarks.tables        # prints the table in docs/data.md

Both standardise by the training rows, and train the same layers by the same loss with Adam, at one
learning rate, batch size and number of epochs. They differ in how weights begin and rows are
shuffled, so each is trained once for each seed, and each seed splits the rows anew.
"""

import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from job.config import Config, load_config
from job.data import Dataset, load_data
from job.device import choose_device, memory_limit, prepare_torch
from job.model import build_model
from job.train import evaluate, train

TABLES = {
    "diabetes": (datasets.load_diabetes, "r2"),
    "wine": (datasets.load_wine, "accuracy"),
    "breast_cancer": (datasets.load_breast_cancer, "accuracy"),
}
SEEDS = range(20)


def write_csv(name: str, folder: Path) -> Path:
    """The table as CSV, its target in the column "target", classes by their names."""
    table = TABLES[name][0]()
    names = getattr(table, "target_names", None)
    target = table.target if names is None else names[table.target]
    lines = [[*table.feature_names, "target"]]
    lines += [[*map(repr, x.tolist()), str(y)] for x, y in zip(table.data, target, strict=True)]
    path = folder / f"{name}.csv"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    return path


def overrides(name: str, path: Path, epochs: int = 30) -> list[str]:
    """The keys of job.yaml for a table."""
    loss = "mse" if TABLES[name][1] == "r2" else "cross_entropy"
    return [
        *("data.kind=file", f"data.path={path}", "data.target=target", "data.test=0.2"),
        *(f"train.loss={loss}", f"train.epochs={epochs}", "train.batch_size=32"),
        *("train.optimizer={name: adam, lr: 0.001}", "train.schedule={name: constant}"),
        *("device=cpu", "threads=1"),
    ]


def ours(config: Config, data: Dataset) -> float:
    device = choose_device(config)
    prepare_torch(device)
    model = build_model(config, data.training.x, data.training.y, len(data.classes))
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, config, device.torch, Path(folder), lambda record: None)
    metrics = evaluate(model, data.test, config.train, device.torch)
    return float(metrics["accuracy" if data.classes else "r2"] or 0.0)


def scikit_learns(config: Config, data: Dataset, seed: int) -> float:
    """Its score on the test rows: r2 or accuracy."""
    make = MLPClassifier if data.classes else MLPRegressor
    mlp = make(
        hidden_layer_sizes=config.model.hidden,
        alpha=0.0,
        learning_rate_init=config.train.optimizer.lr,
        batch_size=config.train.batch_size,
        max_iter=config.train.epochs,
        tol=0.0,
        n_iter_no_change=config.train.epochs,
        random_state=seed,
    )
    if not data.classes:
        mlp = TransformedTargetRegressor(mlp, transformer=StandardScaler())
    model = make_pipeline(StandardScaler(), mlp)
    with warnings.catch_warnings():
        # All epochs were trained, as was asked for.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        model.fit(data.training.x.astype(np.float64), data.training.y[:, 0])
    return float(model.score(data.test.x.astype(np.float64), data.test.y[:, 0]))


def measure(name: str, folder: Path) -> Iterator[tuple[float, float]]:
    """The job's score and scikit-learn's, for each seed."""
    path = write_csv(name, folder)
    for seed in SEEDS:
        config = load_config(None, [*overrides(name, path), f"seed={seed}"])
        data = load_data(config.data, seed, memory_limit(), config.train.task)
        yield ours(config, data), scikit_learns(config, data, seed)


def main() -> None:
    print("| table | rows | metric | job | scikit-learn | difference |")
    print("|---|---:|---|---:|---:|---:|")
    for name, (shipped, metric) in TABLES.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = list(measure(name, Path(folder)))
        columns = [*zip(*pairs, strict=True), [one - other for one, other in pairs]]
        cells = [
            f"{statistics.mean(c):z.4f} ± {statistics.stdev(c) / len(pairs) ** 0.5:.4f}"
            for c in columns
        ]
        print(f"| {name} | {len(shipped().data)} | {metric} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
