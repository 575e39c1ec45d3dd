"""The configuration: what is wrong is refused, all at once, with where it stands and what to do."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.config import Config, load_config, to_yaml
from job.config.reader import MAX_BYTES, read
from job.errors import ConfigError, MissingInputError, NoPermission

from .conftest import ROOT


def faults_of(path: Path, *overrides: str, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), overrides, env)
    return caught.value.faults


@pytest.fixture
def write(tmp_path: Path) -> "Write":
    return Write(tmp_path / "job.yaml")


class Write:
    """Writes a job.yaml and gives its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str | bytes) -> Path:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.path


def test_the_shipped_job_yaml_is_the_defaults() -> None:
    assert load_config(str(ROOT / "job.yaml")) == load_config(None) == Config()


def test_every_default_is_shown_in_the_shipped_job_yaml() -> None:
    """But for the hyperparameters of the one optimizer and loss, whose defaults are torch's."""
    shipped = read((ROOT / "job.yaml").read_text()).value
    full = Config().model_dump(mode="json")
    for name in ("betas", "eps", "weight_decay"):
        del full["train"]["optimizer"][name]
    for name in ("huber_delta", "class_weights", "label_smoothing"):
        del full["train"][name]
    del full["train"]["schedule"]["warmup"]
    del full["train"]["checkpoint"]["every_seconds"]  # the other way to say it
    assert shipped == full


def test_one_key_is_enough(write: Write) -> None:
    assert load_config(str(write("seed: 0"))) == Config()


def test_all_faults_are_reported_at_once_with_place_expectation_and_nearest_key(
    write: Write,
) -> None:
    path = write(
        "seed: 1.5\n"
        "device: off\n"
        "train:\n"
        "  epoch: 3\n"
        "  optimizer: {name: Adam W, lr: fast}\n"
        "model: {hidden: [1, x]}\n"
    )
    env = {"JOB__TRAIN__LOSS": "rmse", "JOB_SERVICE_PORT": "80"}
    assert faults_of(path, "train.batch_size=0", "bogus=1", env=env) == [
        "job.yaml:1: seed: expected a valid integer or 'run', got 1.5",
        'job.yaml:2: device: expected auto, cpu, cuda or cuda:N, got "off"',
        'job.yaml:6: model.hidden[1]: expected a valid integer, got "x"',
        "environment JOB__TRAIN__LOSS: train.loss: expected 'mse', 'mae', 'huber' or "
        "'cross_entropy', got \"rmse\"",
        'job.yaml:5: train.optimizer.lr: expected a valid number, got "fast"',
        "command line: train.batch_size: expected a number greater than or equal to 1, got 0",
        "job.yaml:4: train.epoch: unknown key; did you mean epochs?",
        "command line: bogus: unknown key; valid keys are data, device, export, model, output, "
        "quality, seed, threads, train, verify",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "1: expected `key: value` lines, got an empty file; the shortest is seed: 0"),
        ("# nothing\n", "1: expected `key: value` lines, got an empty file"),
        ("- 1", "1: expected `key: value` lines, got [1]"),
        ("seed: 010", "1: seed: 010 starts with 0: write 10"),
        ("seed: 0x10", "1: seed: expected a valid integer or 'run', got \"0x10\""),
        ("seed: 1:30", "1: seed: expected a valid integer or 'run', got \"1:30\""),
        ("seed: true", "1: seed: expected a valid integer or 'run', got true"),
        ("seed: ~", "1: seed: expected a valid integer or 'run', got null"),
        ('seed: "1"', "1: seed: expected a valid integer or 'run', got \"1\""),
        ("seed: -1", "1: seed: expected a number greater than or equal to 0"),
        (f"seed: {'9' * 5000}", "1: seed: an integer of 5000 digits is too large"),
        ("seed: 2026-13-45", "1: seed: expected a valid integer or 'run', got \"2026-13-45\""),
        ("seed: 2024-01-01", "1: seed: expected a valid integer or 'run', got \"2024-01-01\""),
        ("data: {noise: .nan}", "1: data.noise: expected a finite number"),
        ("data: {noise: .inf}", "1: data.noise: expected a finite number"),
        ("seed: 1\nseed: 2", "2: seed: duplicate key; it stands in line 1 already"),
        ("train:\n\tepochs: 1", "2: not valid YAML: a tab; indent with blanks"),
        ("&a seed: *a", "1: seed: a key must be a plain word"),
        ("seed: \ufeff1", "1: seed: expected a valid integer or 'run', got"),
        ("train: {optimizer: {lr: 1e99999}}", "1: train.optimizer.lr: expected a finite number"),
        ("a: &x [1]\nb: *x", "1: a: anchors (&) and aliases (*) are not read"),
        ("<<: {seed: 1}", "1: <<: unknown key"),
        ("seed: !!int 1", "1: seed: the tag tag:yaml.org,2002:int is not read"),
        ("x: !!python/object/apply:os.system [id]", "1: x: the tag"),
        ("seed: 0\n---\nseed: 1", "2: a second document; only one is read"),
        ("[" * 5000, "1: nested deeper than 20 levels"),
        ("{a: " * 5000, "1: nested deeper than 20 levels"),
        ("".join(f"k{n}: 1\n" for n in range(2000)), "1001: more than 1000 keys"),
        ("? [a]\n: 1", "1: a key must be a plain word"),
        ("seed: 0\x00", "not valid YAML"),
        ("seed: [", "not valid YAML"),
        ("train: {optimizer: {lr: 0}}", "1: train.optimizer.lr: expected a number greater than 0"),
        ("train: 5", "1: train: expected a section of key: value lines, got 5"),
        ("data: {features: 4}", "1: data.features: friedman1 needs at least 5 features, got 4"),
        ("data: {outputs: 2}", "1: data.outputs: this is of the kind noise or linear or teacher"),
        ("data: {samples: 100}", "1: data.test: the test split would have 10 rows and needs 32"),
        ("data: {validation: 0.6, test: 0.5}", "1: data.test: validation (0.6) and test (0.5)"),
        (
            "data:\n  kind: gaussians\ntrain:\n  epochs: 1\n  loss: mse",
            "5: train.loss: data.kind gaussians is a classification and needs the loss "
            'cross_entropy, got "mse"',
        ),
        ("data: {kind: gaussians}", "configuration: train.loss: data.kind gaussians is"),
        ("train:\n  loss: cross_entropy", "2: train.loss: data.kind friedman1 is a regression"),
        (
            "train:\n  huber_delta: 2",
            "2: train.huber_delta: this is of the loss huber and train.loss is mse, got 2",
        ),
        ("train: {loss: huber, huber_delta: 0}", "1: train.huber_delta: expected a number greater"),
        (
            "train: {loss: mae, class_weights: [1, 2]}",
            "1: train.class_weights: this is of the loss cross_entropy and train.loss is mae",
        ),
        (
            "data: {kind: gaussians}\ntrain: {loss: cross_entropy, class_weights: [1, 2, 3]}",
            "2: train.class_weights: there are 2 classes, each with its weight, got",
        ),
        ("train: {label_smoothing: 0.1}", "1: train.label_smoothing: this is of the loss cross"),
        ("train: {grad_clip: 0}", "1: train.grad_clip: expected a number greater than 0, got 0"),
        ("train: {early_stopping: 3}", "1: train.early_stopping: expected a section of key: value"),
        ("train: {early_stopping: {patiense: 3}}", "unknown key; did you mean patience?"),
        ("train: {early_stopping: {patience: 0}}", "1: train.early_stopping.patience: expected a"),
        ("train: {early_stopping: {min_delta: -1}}", "min_delta: expected a number greater than"),
        ("model: {dropout: 1}", "1: model.dropout: expected a number less than 1, got 1"),
        ("train: {schedule: {warmup: -1}}", "train.schedule.warmup: expected a number greater"),
        ("train: {schedule: {warmup: 1.5}}", "expected a valid integer or a number less than 1"),
        (
            "train: {schedule: {warmup: 980}}",
            "1: train.schedule: a warmup of 980 steps does not end: the training has 980, got",
        ),
        (
            "train: {optimizer: {name: adamz}, schedule: {name: constant, warmup: 5}}",
            "1: train.schedule: adamz adjusts the learning rate itself and a warmup would",
        ),
        (
            "quality: {metrics: {accuracy: {min: 0.9}}}",
            "1: quality.metrics: no metric of a regression; valid ones are loss, mse, mae, r2, "
            'excess_risk, got "accuracy"',
        ),
        ("quality: {metrics: {r2: {mni: 0.9}}}", "1: quality.metrics.r2.mni: unknown key; did you"),
        ("quality: {metrics: {r2: {min: high}}}", "1: quality.metrics.r2.min: expected a valid"),
        ("quality: {metrics: {r2: {}}}", "1: quality.metrics.r2: a gate needs min, max or both"),
        ("quality: {metrics: {r2: {min: 1, max: 0}}}", "1: quality.metrics.r2: min is above max"),
        ("quality: {metrics: {r2: 0.9}}", "1: quality.metrics.r2: expected a section of key"),
        ("export: {formats: [onnx]}", "1: export.formats: torchscript is always exported"),
        ("export: {opset: 17}", "1: export.opset: expected 'auto' or a number greater"),
        ("model: {activation: gelu}\nexport: {opset: 18}", "2: export: opset 18 has no Gelu"),
        ("train: {optimizer: {name: sgd, nesterov: true}}", "nesterov needs momentum above 0"),
        ("\x1b[31mred: 1", "not valid YAML"),
    ],
)
def test_a_wrong_document_is_refused_with_its_reason(text: str, fault: str, write: Write) -> None:
    assert any(fault in line for line in faults_of(write(text)))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("seed: 0".encode("utf-16"), "job.yaml:1: not UTF-8 text"),
        (b"seed: 0\ndevice: \xff", "job.yaml:2: not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), f"job.yaml: larger than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_is_not_text_is_refused(content: bytes, fault: str, write: Write) -> None:
    assert faults_of(write(content)) == [fault]


def test_numbers_are_what_a_person_means(write: Write) -> None:
    config = load_config(str(write("train: {optimizer: {lr: 1e-3}}\ndata: {noise: 2}")))
    assert config.train.optimizer.lr == 0.001
    assert config.data.noise == 2.0


def test_a_byte_order_mark_is_no_fault(write: Write) -> None:
    assert load_config(str(write(b"\xef\xbb\xbfseed: 3"))).seed == 3


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(
    write: Write,
) -> None:
    path = str(write("seed: 1"))
    env = {"JOB__SEED": "2", "JOB__TRAIN__EPOCHS": "7"}
    assert load_config(path).seed == 1
    assert load_config(path, environ=env).seed == 2
    both = load_config(path, ["seed=3", "seed=4"], env)
    assert (both.seed, both.train.epochs) == (4, 7)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("seed=", "command line: seed: expected a valid integer or 'run', got null"),
        ("=3", "command line: "),
        ("a..b=3", "command line: a"),
        ("train=5", "command line: train: expected a section"),
        ("seed.deeper=5", "command line: seed.deeper: seed is 1, not a section"),
        ("seed=[1", "command line: seed: not valid YAML"),
        ("seed=1\n---\n2", "command line: seed: a second document"),
        ("train.optimizer.momentum=0.9", "command line: train.optimizer.momentum: unknown key"),
    ],
)
def test_a_wrong_override_is_refused(override: str, fault: str, write: Write) -> None:
    assert any(line.startswith(fault) for line in faults_of(write("seed: 1"), override))


def test_one_wrong_override_is_one_fault(write: Write) -> None:
    (fault,) = faults_of(write("seed: 1"), "train.epochs=010")
    assert fault == "command line: train.epochs: 010 starts with 0: write 10"


def test_all_faults_of_one_section_are_reported_at_once() -> None:
    keys = ("data.kind=gaussians", "train.loss=cross_entropy", "train.class_weights=[1.0]")
    with pytest.raises(ConfigError) as caught:
        load_config(None, [*keys, "train.schedule.warmup=100000"])
    one, other = caught.value.faults
    assert one.startswith("command line: train.class_weights: there are 2 classes")
    assert other.startswith("command line: train.schedule")
    assert "does not end" in other
    with pytest.raises(ConfigError, match=r'no metric of a regression.*got \["f1", "auc"\]'):
        load_config(None, ["quality.metrics={f1: {min: 1}, r2: {min: 0}, auc: {min: 1}}"])


def test_a_key_of_a_section_that_is_off_turns_it_on() -> None:
    config = load_config(str(ROOT / "job.yaml"), ["train.early_stopping.patience=3"])
    assert config.train.early_stopping is not None
    assert config.train.early_stopping.patience == 3


@pytest.mark.parametrize(
    ("validation", "test", "fault"),
    [
        (0.0004, 0.1, "the validation split would have 0 rows and needs 1"),
        (0.1, 0.031, "the test split would have 31 rows and needs 32"),
        (0.4999, 0.4999, "the training split would have 0 rows and needs 1"),
        (0.5, 0.5, "together leave no rows to train on"),
    ],
)
def test_a_split_without_rows_is_refused(validation: float, test: float, fault: str) -> None:
    shares = [f"data.validation={validation}", f"data.test={test}"]
    with pytest.raises(ConfigError, match=fault):
        load_config(None, ["data.samples=1000", *shares])


def test_no_columns_are_not_all_columns() -> None:
    with pytest.raises(ConfigError, match=r"data\.columns"):
        load_config(None, ["data.kind=file", "data.path=a.csv", "data.target=y", "data.columns=[]"])


def test_an_override_replaces_lists_and_sections_whole() -> None:
    config = load_config(None, ["model.hidden=[3, 2]", "train.optimizer={name: sgd, lr: 0.5}"])
    assert config.model.hidden == (3, 2)
    assert config.train.optimizer.model_dump()["lr"] == 0.5


def test_what_is_not_a_regular_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ("fifo", "loop", "dangling", "nowhere")
    for path in (tmp_path, *(tmp_path / name for name in names), "/dev/zero"):
        with pytest.raises(MissingInputError):
            load_config(str(path))
    with pytest.raises(MissingInputError, match="not a path"):
        load_config("a\0b")


def test_a_file_that_may_not_be_read_is_no_permission(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("seed: 0")
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: become somebody else for the moment
        for parent in (path.parent, path.parent.parent, path.parent.parent.parent):
            parent.chmod(0o755)
        os.seteuid(54321)
    try:
        with pytest.raises(NoPermission):
            load_config(str(path))
    finally:
        os.seteuid(os.getuid())


def test_a_message_never_drives_a_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["\x1b[31mred=1", 'seed="\\e[31m"'])
    assert "\x1b" not in str(caught.value)


TEXTS = st.text(
    st.characters(exclude_characters="\0", categories=("L", "N", "P", "S", "Zs", "Cc")), min_size=1
)
STRANGE = st.sampled_from(["1e3", "off", "null", "a: b", " x", "#", "~", "010", "[1", "- a", "'"])


@settings(max_examples=300, deadline=None)
@given(
    folder=STRANGE | TEXTS,
    lr=st.floats(min_value=1e-300, max_value=1e300),
    hidden=st.lists(st.integers(1, 65_536), max_size=5),
)
def test_what_is_written_is_read_again_as_the_same(
    folder: str, lr: float, hidden: list[int]
) -> None:
    values = {
        "output": {"dir": folder},
        "model": {"hidden": hidden},
        "train": {"optimizer": {"name": "adam", "lr": lr}},
    }
    config = Config.model_validate(values)
    again = read(to_yaml(config))
    assert not again.faults
    assert Config.model_validate(again.value) == config


def test_the_committed_schema_is_what_schema_prints_and_job_yaml_names_it() -> None:
    committed = ROOT / "docs" / "job.schema.json"
    assert json.loads(committed.read_text()) == Config.model_json_schema()
    first = (ROOT / "job.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=docs/job.schema.json"
