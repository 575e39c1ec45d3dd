"""What is said and written about a run: events, metrics.jsonl, manifest fields, the report."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from job import manifest
from job.config import Config, to_yaml
from job.data import Dataset
from job.device import Device
from job.errors import Verdict
from job.identity import versions
from job.log import WARNING, event
from job.model import MLP
from job.publish import Run
from job.report.page import render_report
from job.train import EpochRecord, Metrics, Training, predict
from job.verify import Reference, Verification

# Test rows whose answers are drawn or counted in the report.
ROWS_SHOWN = 10_000

DEVICE = "{type} ({name}; {reason}), threads: {threads}"


def say_start(run: Run, device: Device, config: Config) -> None:
    threads = f"{device.threads} thread" + "s" * (device.threads > 1)
    again = f"attempt {run.resumed + 1} of " if run.resumed else ""
    event(
        "start",
        f"{again}run {run.id} on {device.type} ({device.reason}), "
        f"{threads} ({device.threads_reason})",
        run_id=run.id,
        resumed=run.resumed,
        device=device.type,
        device_name=device.name,
        reason=device.reason,
        threads=device.threads,
        threads_reason=device.threads_reason,
        seed=config.seed,
    )


def say_published_before(run: Run) -> None:
    event("published_before", f"run {run.id} is published already and intact", run_id=run.id)


def say_published(run: Run, facts: dict[str, Any]) -> None:
    test, timing, floor = facts["metrics"]["test"], facts["timing"], facts["data"]["floor"]
    said = [
        f"{name} {value:.4f}" + (f" (at best {floor[name]:.4g})" if name in floor else "")
        for name, value in test.items()
        if name != "loss" and value is not None
    ]
    event(
        "published",
        f"test {', '.join(said)}",
        run_id=run.id,
        test=test,
        verification=facts["verification"],
    )
    stages = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in timing.items())
    event("timing", stages, **timing)


def say_no_evidence(error: Exception) -> None:
    event("evidence", f"what there is to see could not be kept: {error}", level=WARNING)


def epoch_writer(run: Run) -> Callable[[EpochRecord], None]:
    """Appends each epoch's record to metrics.jsonl."""

    def write(record: EpochRecord) -> None:
        with open(run.staging / "metrics.jsonl", "a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    return write


def say_if_memorising(training: Training, data: Dataset, config: Config) -> None:
    """Warns where the training loss is below what any model can reach on new rows, by more than
    four standard errors of a mean over so many rows."""
    metric, loss = config.train.loss_metric, training.result.training_loss
    if metric is None or metric not in data.floor:
        return
    floor = data.floor[metric]
    if loss < floor - 4 * data.stds[metric] / len(data.training.x) ** 0.5:
        event(
            "memorising",
            f"the training loss {loss:.5g} is below the best reachable {floor:g}: the model is "
            f"memorising noise; use fewer epochs or a smaller model",
            level=WARNING,
            training_loss=loss,
            floor=floor,
        )


def write_verification(run: Run, verification: Verification) -> None:
    verification.write(run.staging)
    failed = len(verification.faults)
    rejected, wrong = verification.mutants
    checked = f"; {rejected} of {wrong} wrong exports rejected" if wrong else ""
    event(
        "verify",
        f"{len(verification.comparisons)} comparisons in a fresh process, {failed} failed{checked}",
        comparisons=len(verification.comparisons),
        failed=failed,
        mutants_rejected=rejected,
        mutants=wrong,
    )
    if verification.diagnosis:
        event("diagnosis", str(verification.diagnosis), level=WARNING)


def manifest_fields(
    run: Run,
    fingerprint: str,
    test: Metrics,
    config: Config,
    device: Device,
    data: Dataset,
    training: Training,
    reference: Reference,
    verification: Verification,
) -> dict[str, Any]:
    """All of manifest.json but `files` and `timing`."""
    return {
        "contract": manifest.CONTRACT,
        "run_id": run.id,
        "fingerprint": fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "signature": _signature(config, data),
        "model": {"hidden": list(config.model.hidden), "activation": config.model.activation},
        "data": {
            "kind": config.data.kind,
            "rows": data.rows,
            "sha256": data.sha256,
            "floor": data.floor,
        },
        "metrics": {"validation": training.result.validation, "test": test},
        "training": {
            "epochs": len(training.epochs),
            "best_epoch": training.best,
            "steps": training.steps,
            "samples_per_second": training.samples_per_second,
            "optimizer": config.train.optimizer.name,
            "resumed": run.resumed,
            "rows_by_rank": training.rows_by_rank,  # of one epoch
        },
        "device": {
            "type": device.type,
            "name": device.name,
            "reason": device.reason,
            "threads": device.threads,
            "world_size": device.ranks.size,
        },
        "verification": {
            "passed": True,
            "comparisons": len(verification.comparisons),
            "headroom": verification.headroom,
            "mutants": dict(zip(("rejected", "of"), verification.mutants, strict=True)),
            "batches": list(reference.batches),
        },
        "versions": versions(),
        "source": {
            "revision": os.environ.get("JOB_SOURCE_REVISION") or None,
            "image": os.environ.get("JOB_SOURCE_IMAGE") or None,
        },
    }


def _signature(config: Config, data: Dataset) -> dict[str, Any]:
    x = _tensor("input", len(data.features), features=data.features)
    if config.data.missing == "mean":
        x["missing"] = "mean"
    if not data.classes:
        y = _tensor("output", len(data.targets), targets=data.targets)
    else:
        y = _tensor("output", len(data.classes), classes=data.classes)
        if data.targets:  # a synthetic kind's classes are no column
            y["target"] = data.targets[0]
    return {"task": config.train.task, "inputs": [x], "outputs": [y]}


def _tensor(name: str, columns: int, **names: list[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": ["batch", columns], **names}


def write_config(run: Run, config: Config) -> None:
    """job.yaml as it was resolved, without paths."""
    (run.staging / "job.yaml").write_text(to_yaml(config, published=True))


def write_report(
    run: Run,
    facts: dict[str, Any],
    timing: dict[str, float],
    model: MLP,
    config: Config,
    device: Device,
    data: Dataset,
    training: Training,
    reference: Reference,
    verification: Verification,
) -> None:
    """report.html of a run that is about to be published, whose manifest's `facts` are known."""
    shown = data.test[:ROWS_SHOWN]
    page = render_report(
        headline="Verified",
        good=True,
        sentence=_sentence(config, facts),
        facts={
            "run": facts["run_id"],
            "created": facts["created"],
            "model": _model(config, facts["signature"]),
            "data": f"{config.data.kind}, {facts['data']['rows']:,} rows, seed {config.seed}",
            "data digest": facts["data"]["sha256"],
            "device": DEVICE.format_map(facts["device"]),
            "training": f"{training.steps:,} steps, "
            f"{training.samples_per_second:,.0f} rows a second",
            "fingerprint": facts["fingerprint"],
            "versions": _listed(facts["versions"]),
            **{name: value for name, value in facts["source"].items() if value},
        },
        epochs=[asdict(record) for record in training.epochs],
        loss=config.train.loss_metric,
        floor=facts["data"]["floor"],
        metrics=facts["metrics"],
        signature=facts["signature"],
        targets=shown.y,
        answers=predict(model, shown.x, device.torch),
        example=(reference.golden_input[0].tolist(), reference.golden_output[0].tolist()),
        verification=verification.as_json(),
        stages={name: seconds for name, seconds in timing.items() if name != "total"},
        files=manifest.file_entries(run.staging),
    )
    (run.staging / "report.html").write_text(page)


def write_failure(run: Run, config: Config, device: Device, verdict: Verdict) -> None:
    """report.html of a run that ended with a verdict, from what it has left so far."""
    epochs, verification = (run.staging / name for name in ("metrics.jsonl", "verification.json"))
    page = render_report(
        headline=f"{verdict.code.name} ({verdict.code:d}): nothing was published",
        sentence=str(verdict),
        facts={
            "run": run.id,
            "model": _model(config),
            "data": f"{config.data.kind}, seed {config.seed}",
            "device": DEVICE.format_map(vars(device)),
            "versions": _listed(versions()),
        },
        loss=config.train.loss_metric,
        epochs=[json.loads(line) for line in epochs.read_text().splitlines()]
        if epochs.exists()
        else [],
        verification=json.loads(verification.read_text()) if verification.exists() else None,
    )
    (run.staging / "report.html").write_text(page)


def _sentence(config: Config, facts: dict[str, Any]) -> str:
    """What a reader wants to know first: do the files agree, and is the model any good."""
    metric = config.train.loss_metric or "loss"
    floor = facts["data"]["floor"].get(metric)
    best = "" if floor is None else f"; no model can reach less than {floor:.4g}"
    return (
        f"The model files agree with the trained model in all "
        f"{facts['verification']['comparisons']} comparisons. "
        f"On the test rows its {metric} is {facts['metrics']['test'][metric]:.4g}{best}."
    )


def _listed(entries: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items())


def _model(config: Config, signature: dict[str, Any] | None = None) -> str:
    """In a few words; without a signature those widths that the configuration says."""
    hidden = [*map(str, config.model.hidden)]
    if signature:
        ends = [str(signature[end][0]["shape"][1]) for end in ("inputs", "outputs")]
        shape = "-".join([ends[0], *hidden, ends[1]])
    else:
        shape = f"with hidden layers of {', '.join(hidden)}" if hidden else "without hidden layers"
    return f"MLP {shape}, {config.model.activation}, {config.train.optimizer.name}"
