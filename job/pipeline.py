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
from job.publish import Run, Space, claim, leave_evidence, prepare_output, publish
from job.quality import require_quality
from job.ranks import Ranks, joined
from job.train import evaluate, predict, train
from job.verify import verify_in_fresh_process


def run_job(
    config: Config,
    run_id: str | None,
    clock: Clock,
    server: ForkServer,
    ranks: Ranks | None = None,
) -> Path:
    """Trains, exports, verifies and publishes; returns the published folder.

    `server`, which may have been started before, exports and verifies; it is ended with the run.

    Raises:
        JobError: whatever kept the run from being published; its class says what.
    """
    ranks = ranks or Ranks()
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
    prepare_output(output, config.output.keep)
    if config.data.kind == "file" and config.data.sha256 is None:
        config = config.with_sha256(file_sha256(config.data, memory_limit()))

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
                record.write_failure(run, config, device, verdict)
                leave_evidence(run, config.output.keep)
                raise
    return run.published


def _data(config: Config, ranks: Ranks) -> Dataset:
    memory = memory_limit() // ranks.local_size
    data = load_data(config.data, config.seed_number, memory, config.train.task)
    config.require_fit(len(data.training.x), len(data.classes))
    return data


def _make(
    run: Run, config: Config, device: Device, space: Space, server: ForkServer, clock: Clock
) -> None:
    """data -> model -> train -> export -> verify -> report -> publish."""
    identity = identify(config, device).fingerprint
    with clock.stage("data"):
        data = _data(config, device.ranks)
        model = build_model(config, data.training.x, data.training.y, len(data.classes))
        space.require(sum(weights.numel() for weights in model.parameters()))
        artifacts = Artifacts(server, model, data, config, device.torch, run.scratch, run.staging)

    with clock.stage("train"):
        place = device.torch, run.checkpoints
        written, check = record.epoch_writer(run), artifacts.check
        training = train(model, data, config, *place, written, device.ranks, check)
        test = evaluate(model, data.test, config.train, device.torch)
        record.say_if_memorising(training, data, config)
        require_quality(config.quality.metrics, test)

    with clock.stage("export"):
        batches = batches_to_verify(config, data)
        reference = reference_of(model, data, config, device.torch, batches)
        artifacts.write(reference, run.staging, identity)

    with clock.stage("verify"):
        verification = verify_in_fresh_process(server, run.staging, reference, run.scratch)
        record.write_verification(run, verification)
        verification.require_agreement()

    with clock.stage("report"):
        facts = record.manifest_fields(
            run, config, device, identity, data, training, test, verification, batches
        )
        record.write_config(run, config)
        shown = data.test[: record.ROWS_SHOWN]
        answers = predict(model, shown.x, device.torch)
        record.write_report(
            run, config, facts, training, verification, clock.timing(), shown.y, answers, reference
        )
    facts["timing"] = clock.timing()
    publish(run, facts, verification.sha256, config.output.keep)
    record.say_published(run, facts)
