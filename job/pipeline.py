"""The job, told in the order in which it happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job import interrupt, record
from job.artifacts import Artifacts, batches_to_verify, reference_of
from job.clock import Clock
from job.config import Config
from job.data import Dataset, file_sha256, load_data
from job.device import Device, choose_device, memory_limit, prepare_torch
from job.errors import Verdict
from job.forkserver import ForkServer
from job.identity import identify, new_run_id
from job.model import build_model
from job.publish import Run, Space, claim, leave_evidence, prepare_output, publish, sweep
from job.quality import require_quality
from job.ranks import Ranks, joined
from job.train import evaluate, train
from job.verify import verify_in_fresh_process


def run_job(
    config: Config, run_id: str | None, clock: Clock, server: ForkServer, ranks: Ranks
) -> Path:
    """Trains, exports, verifies and publishes; returns the published folder.

    `server`, which may have been started before, exports and verifies; it is ended with the run.

    Raises:
        JobError: whatever kept the run from being published; its class says what.
    """
    with _on_device(config, ranks) as device:
        return _run(config, run_id, clock, server, device)


def follow(config: Config, ranks: Ranks) -> None:
    """What every process but the first does: the same rows and model, its share of each batch.

    Raises:
        JobError: whatever ended the training; its class says what.
    """
    with _on_device(config, ranks) as device:
        resolved: Config | None = ranks.from_first(lambda: None)
        if resolved is not None:  # else the run is published already
            data = _data(resolved, ranks)
            model = build_model(resolved, data.training.x, data.training.y, len(data.classes))
            train(model, data, resolved, device.torch, Path(), lambda _: None, ranks)
            ranks.end_together()


@contextmanager
def _on_device(config: Config, ranks: Ranks) -> Iterator[Device]:
    interrupt.check()
    ranks.require_multiple(config.train.batch_size)
    device = choose_device(config, ranks)
    prepare_torch(device)
    with joined(ranks, device.type):
        yield device


def _run(
    config: Config, run_id: str | None, clock: Clock, server: ForkServer, device: Device
) -> Path:
    output = Path(config.output.dir)
    prepare_output(output)
    sweep(output)
    if config.data.kind == "file" and config.data.sha256 is None:
        config = config.with_sha256(file_sha256(config.data, _memory(device.ranks)))

    new_id = new_run_id(identify(config, device).fingerprint)
    with claim(output, run_id, lambda name: identify(config.for_run(name), device), new_id) as run:
        config = config.for_run(run.id)
        published = run.published.exists()
        device.ranks.from_first(lambda: None if published else config)
        if published:
            record.say_published_before(run)
        else:
            record.say_start(run, device, config)
            space = Space(output)
            try:
                # Nobody writes any more where the run's folders are removed.
                with space, server:
                    _make(run, config, device, space, server, clock)
            except Verdict as verdict:
                _leave_evidence(run, config, device, verdict)
                raise
            device.ranks.end_together()
    return run.published


def _leave_evidence(run: Run, config: Config, device: Device, verdict: Verdict) -> None:
    """As far as that can be done: the verdict stands without it."""
    try:
        record.write_failure(run, config, device, verdict)
        leave_evidence(run, config.output.keep)
    except Exception as error:  # noqa: BLE001  whatever it is, the verdict says more
        record.say_no_evidence(error)


def _memory(ranks: Ranks) -> int:
    """Bytes that this process may use."""
    return memory_limit() // ranks.local_size


def _data(config: Config, ranks: Ranks) -> Dataset:
    data = load_data(config.data, config.seed_number, _memory(ranks), config.train.task)
    config.require_fit(len(data.training.x), len(data.classes))
    return data


def _needs_every_cpu(device: Device) -> bool:
    """Would a step wait for the thread whose CPU another process has?

    Of several ranks none may wait alone: they stop together, from their first step on.
    """
    return device.type == "cpu" and device.threads > 1 and device.ranks.size == 1


def _make(
    run: Run, config: Config, device: Device, space: Space, server: ForkServer, clock: Clock
) -> None:
    """data -> model -> train -> export -> verify -> report -> publish."""
    fingerprint = identify(config, device).fingerprint
    with clock.stage("data"):
        data = _data(config, device.ranks)
        model = build_model(config, data.training.x, data.training.y, len(data.classes))
        space.require(sum(weights.numel() for weights in model.parameters()))
        artifacts = Artifacts(server, model, data, config, device.torch, run.scratch, run.staging)

    with clock.stage("train"):
        if _needs_every_cpu(device):
            artifacts.wait()
        training = train(
            model,
            data,
            config,
            device.torch,
            run.checkpoints,
            on_epoch=record.epoch_writer(run),
            on_step=artifacts.check,
            ranks=device.ranks,
        )
        test = evaluate(model, data.test, config.train, device.torch)
        record.say_if_memorising(training, data, config)
        require_quality(config.quality.metrics, test)

    with clock.stage("export"):
        reference = reference_of(model, data, config, device.torch, batches_to_verify(config, data))
        artifacts.write(reference, run.staging, fingerprint)

    with clock.stage("verify"):
        verification = verify_in_fresh_process(server, run.staging, reference, run.scratch)
        record.write_verification(run, verification)
        verification.require_agreement()

    with clock.stage("report"):
        told = config, device, data, training, reference, verification
        facts = record.manifest_fields(run, fingerprint, test, *told)
        record.write_config(run, config)
        record.write_report(run, facts, clock.timing(), model, *told)
    facts["timing"] = clock.timing()
    publish(run, facts, verification.sha256, config.output.keep)
    record.say_published(run, facts)
