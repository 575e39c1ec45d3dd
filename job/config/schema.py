"""The sections of job.yaml as types: each key with its default, its bounds and one sentence.

Sections are named like the modules that read them. `python -m job schema` prints this file's
content as JSON Schema.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from job.errors import ConfigError

# At least this many rows of the test split are published as golden vectors.
MIN_TEST_ROWS = 32

# An operator set is offered where this job has verified it: 18 is the lowest that torch's exporter
# writes, 20 the first with Gelu as one operator.
OPSETS = (18, 19, 20, 21)
_GELU_OPSET = 20

_DEVICE = r"auto|cpu|cuda(:[0-9]{1,3})?"

Task = Literal["regression", "classification"]

# What is measured on held-out rows.
METRICS: dict[Task, tuple[str, ...]] = {
    "regression": ("loss", "mse", "mae", "r2", "excess_risk"),
    "classification": ("loss", "log_loss", "accuracy", "excess_risk"),
}

Count = Annotated[int, Field(ge=1, le=2**40)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


SPLITS = ("training", "validation", "test")


def split(rows: int, validation: float, test: float) -> tuple[int, int, int]:
    """How many of so many rows are training, validation and test, the last two by their shares."""
    held_out = round(rows * validation), round(rows * test)
    return rows - sum(held_out), *held_out


class KeyFaults(ValueError):
    """What is wrong with keys, (key, what was got, message) of each, found where the section that
    holds them is validated."""

    def __init__(self, *faults: tuple[str, object, str]) -> None:
        super().__init__("; ".join(message for _, _, message in faults))
        self.faults = faults


class Section(BaseModel):
    """Frozen; an unknown key or a value of another type is an error, never converted."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,  # a default may not fit what another key says
        use_attribute_docstrings=True,
    )


# Keys of `data` that not every kind reads, with the kinds that do.
_REGRESSIONS = ("noise", "linear", "friedman1", "friedman2", "friedman3", "teacher")
_SYNTHETIC = (*_REGRESSIONS, "gaussians", "xor")
_KINDS_OF = {
    "samples": _SYNTHETIC,
    "features": _SYNTHETIC,
    "outputs": ("noise", "linear", "teacher"),
    "noise": (*_REGRESSIONS, "gaussians"),
    "classes": ("gaussians",),
    "label_noise": ("xor",),
    "teacher": ("teacher",),
    **dict.fromkeys(("path", "sha256", "target", "columns", "split_by", "missing"), ("file",)),
}
_MIN_FEATURES = {"friedman1": 5, "friedman2": 4, "friedman3": 4, "xor": 2}


class Teacher(Section):
    """The random network that the kind `teacher` takes its targets from."""

    width: Size = 32
    """Hidden units."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides its weights, whatever the job's own seed."""


Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


class Data(Section):
    """What is learnt from."""

    kind: Literal[
        "noise", "linear", "friedman1", "friedman2", "friedman3", "teacher", "gaussians", "xor",
        "file",
    ] = "friedman1"  # fmt: skip
    """Numbers: `friedman1`, `friedman2` and `friedman3`, Friedman's test functions; `linear`;
    `teacher`, a random network; `noise`, random x and unrelated random y. Classes: `gaussians`,
    each normal around its own centre; `xor`, of two signs. `file`: the rows of a table, numbers or
    classes as train.loss says."""
    samples: Annotated[int, Field(ge=100, le=2**40)] = 2_000_000
    """Rows over all three splits. Not of a file."""
    features: Size = 10
    """Columns of x; friedman1 uses the first 5, friedman2 and friedman3 the first 4, xor the first
    2, the others are distractors. Not of a file."""
    outputs: Size = 1
    """Columns of y, each with its own truth; more than 1 for noise, linear and teacher."""
    noise: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] = 1.0
    """Standard deviation of the irreducible noise in y, so that noise^2 is the best MSE; for
    gaussians that of x around the centres, which are 2 apart. Not of xor or a file."""
    classes: Annotated[int, Field(ge=2, le=100)] = 2
    """Of gaussians: how many there are."""
    label_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Of xor: share of the labels that are flipped."""
    teacher: Teacher = Teacher()
    """Of teacher: the network."""
    path: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+\.(csv|parquet|npy)$")] | None = (
        None
    )
    """Of file: a .csv with a header, a .parquet, or an .npy (rows, columns), whose columns are
    c0, c1, ..."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of file: what its content must be; null takes what there is. It is published."""
    target: Annotated[
        Names,
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | Names,
        ),
    ] = ()
    """Of file: the column to learn, or several of numbers."""
    columns: Annotated[Names, Field(min_length=1)] | None = None
    """Of file: the features; null takes all columns but target and split_by."""
    split_by: Annotated[str, Field(min_length=1)] | None = None
    """Of file: a column that says training, validation or test; null splits by the seed."""
    missing: Literal["error", "mean"] = "error"
    """Of file: what a missing value of a feature is, an error or the mean of the training rows; the
    model then answers so to NaN."""
    validation: Share = 0.1
    """Share of the rows held out to watch the training."""
    test: Share = 0.1
    """Share of the rows held out for the final metrics."""

    @field_validator(*_KINDS_OF)
    @classmethod
    def _is_of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        key, kind = str(info.field_name), info.data.get("kind")
        kinds = _KINDS_OF[key]
        if kind is not None and kind not in kinds and value != cls.model_fields[key].default:
            raise ValueError(f"this is of the kind {' or '.join(kinds)} and data.kind is {kind}")
        return value

    @field_validator("features")
    @classmethod
    def _enough_features(cls, features: int, info: ValidationInfo) -> int:
        kind = info.data.get("kind")
        if features < (needed := _MIN_FEATURES.get(str(kind), 1)):
            raise ValueError(f"{kind} needs at least {needed} features")
        return features

    @field_validator("path", "target")
    @classmethod
    def _is_needed(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("kind") == "file" and not value:
            raise ValueError(f"data.kind file needs a {info.field_name}")
        return value

    @field_validator("target", "columns", "split_by")
    @classmethod
    def _columns_differ(cls, value: Any, info: ValidationInfo) -> Any:
        said = [*info.data.get("target", ()), *(info.data.get("columns") or ())]
        for name in [value] if isinstance(value, str) else value or ():
            if name in said:
                raise ValueError(f"column {name} is in data.target or data.columns already")
            said.append(name)
        return value

    @field_validator("validation", "test")
    @classmethod
    def _one_split(cls, value: float, info: ValidationInfo) -> float:
        key = str(info.field_name)
        if info.data.get("split_by") is not None and value != cls.model_fields[key].default:
            raise ValueError("data.split_by says which rows are held out, so no share can")
        return value

    @field_validator("test")
    @classmethod
    def _enough_rows(cls, test: float, info: ValidationInfo) -> float:
        samples, validation = info.data.get("samples"), info.data.get("validation")
        if validation is not None and validation + test >= 1:
            raise ValueError(
                f"validation ({validation}) and test ({test}) together leave no rows to train on"
            )
        if info.data.get("kind") == "file" or samples is None or validation is None:
            return test
        rows = split(samples, validation, test)
        for name, count, least in zip(SPLITS, rows, (1, 1, MIN_TEST_ROWS), strict=True):
            if count < least:
                raise ValueError(
                    f"the {name} split would have {count} rows and needs {least}; raise "
                    f"data.samples, or give other shares in data.validation and data.test"
                )
        return test

    @model_serializer(mode="wrap")
    def _keys_of_the_kind(self, every: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that this kind does not read."""
        return {k: v for k, v in every(self).items() if self.kind in _KINDS_OF.get(k, (self.kind,))}

    @property
    def class_count(self) -> int:
        """How many classes a synthetic kind has; 0 for numbers and for a file, which tells."""
        return {"gaussians": self.classes, "xor": 2}.get(self.kind, 0)

    def split(self, rows: int) -> tuple[int, int, int]:
        """How many of so many rows are training, validation and test."""
        return split(rows, self.validation, self.test)


class Model(Section):
    """The multi-layer perceptron."""

    hidden: Annotated[tuple[Size, ...], Field(max_length=64, strict=False)] = (100,)
    """Width of each hidden layer; [] is a linear model."""
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"
    """The function after each hidden layer."""
    dropout: Fraction = 0.0
    """Share of each hidden layer's values that a training step sets to 0 (torch.nn.Dropout)."""


class _AdamLike(Section):
    """What Adam and its kin have in common."""

    name: str
    lr: Rate = 0.01
    """Learning rate at the schedule's peak."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: NonNegative = 1e-8
    """Added to the denominator."""


class Adam(_AdamLike):
    """Adam (torch.optim.Adam)."""

    name: Literal["adam"] = "adam"
    weight_decay: NonNegative = 0.0
    """L2 penalty, added to the gradient."""


class AdamW(_AdamLike):
    """Adam with decoupled weight decay (torch.optim.AdamW)."""

    name: Literal["adamw"]
    weight_decay: NonNegative = 0.01
    """Shrinks the weights by lr * weight_decay a step."""


class AdamX(_AdamLike):
    """AdamX of Phuong and Phong (2019), Algorithm 2 (job.optim.AdamX)."""

    name: Literal["adamx"]
    lr: Rate = 1e-3
    """Learning rate at the schedule's peak; the first steps are 3 to 7 times as long."""
    beta1_decay: Annotated[float, Field(gt=0, le=1)] = 0.999
    """What the exponential schedule multiplies beta 1 by at each step; 1 keeps it constant."""
    beta1_schedule: Literal["exponential", "harmonic"] = "exponential"
    """`exponential`: beta 1 times beta1_decay^(t-1) at step t; `harmonic`: beta 1 / t."""
    weight_decay: NonNegative = 0.0
    """Shrinks the weights by lr * weight_decay a step."""


class AdamZ(_AdamLike):
    """AdamZ of Zaznov et al. (2024): Adam whose learning rate follows the loss (job.optim.AdamZ).

    Needs train.schedule.name constant.
    """

    name: Literal["adamz"]
    lr: Rate = 0.01
    """Learning rate of the first step, from min_lr to max_lr."""
    overshoot_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Multiplies lr where the loss is the highest of the last `patience`."""
    stagnation_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.2
    """Multiplies lr where the loss hardly moves."""
    stagnation_threshold: NonNegative = 0.2
    """It hardly moves where the standard deviation of the last `stagnation_period` losses is less
    than this share of that of the last `patience`."""
    patience: Count = 100
    """Steps that must have been before lr is adjusted, and whose losses are looked at."""
    stagnation_period: Count = 10
    """Steps that are looked at for stagnation; meant to be fewer than `patience`."""
    max_grad_norm: Rate = 1.0
    """Norm to which the gradients of a step are clipped, all together."""
    min_lr: NonNegative = 1e-7
    """lr never falls below this."""
    max_lr: Rate = 1.0
    """lr never rises above this; a warning is given where that is more than ten times lr."""
    weight_decay: NonNegative = 0.0
    """Shrinks the weights by lr * weight_decay a step."""

    @field_validator("min_lr")
    @classmethod
    def _min_lr_is_below(cls, min_lr: float, info: ValidationInfo) -> float:
        if min_lr > info.data.get("lr", min_lr):
            raise ValueError(f"min_lr is above lr ({info.data['lr']})")
        return min_lr

    @field_validator("max_lr")
    @classmethod
    def _max_lr_is_above(cls, max_lr: float, info: ValidationInfo) -> float:
        if max_lr < info.data.get("lr", max_lr):
            raise ValueError(f"max_lr is below lr ({info.data['lr']})")
        return max_lr


class SGD(Section):
    """Stochastic gradient descent (torch.optim.SGD)."""

    name: Literal["sgd"]
    lr: Rate = 0.01
    """Learning rate at the schedule's peak."""
    momentum: Fraction = 0.0
    """Share of the last update that is carried on."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum above 0."""
    weight_decay: NonNegative = 0.0
    """L2 penalty, added to the gradient."""

    @field_validator("nesterov")
    @classmethod
    def _nesterov_needs_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs momentum above 0")
        return nesterov


def _fold_name(value: Any) -> Any:
    """ "Adam W", "adam-w" and "ADAMW" all mean adamw; no name means adam."""
    if isinstance(value, dict):
        name = value.get("name", "adam")
        if isinstance(name, str):
            return {**value, "name": re.sub(r"[ _-]", "", name).lower()}
    return value


Optimizer = Annotated[
    Annotated[Adam | AdamW | AdamX | AdamZ | SGD, Field(discriminator="name")],
    BeforeValidator(_fold_name),
]


class Schedule(Section):
    """How the learning rate moves over the training."""

    name: Literal["constant", "cosine", "linear"] = "cosine"
    """`cosine` and `linear` fall to 0 at the last step."""
    warmup: Annotated[int, Field(ge=0)] | Fraction = 0
    """Steps, or as a number below 1 the share of all steps, in which the learning rate first rises
    linearly to its peak."""

    @property
    def steady(self) -> bool:
        """Is the learning rate the optimizer's own from beginning to end?"""
        return self.name == "constant" and self.warmup == 0

    def warmup_steps(self, steps: int) -> int:
        """How many of `steps` are warmup."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * steps)


class EarlyStopping(Section):
    """Ends the training once the validation loss falls no more; the best epoch's weights stay."""

    patience: Count = 5
    """Epochs in a row without a lower loss, after which it ends."""
    min_delta: NonNegative = 0.0
    """A loss is lower if it is so by more than this, in the loss's own unit."""


class Checkpoint(Section):
    """When the state is saved, to be resumed from after a signal, a kill or a power cut."""

    every: Count | None = 1
    """Epochs between two checkpoints; null leaves it to every_seconds."""
    every_seconds: Rate | None = None
    """Seconds between two, in the middle of an epoch too. Given alone it replaces `every`."""

    @model_validator(mode="before")
    @classmethod
    def _either(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_seconds") is not None:
            return {"every": None, **values}
        return values

    @field_validator("every_seconds")
    @classmethod
    def _one_of_both(cls, seconds: float | None, info: ValidationInfo) -> float | None:
        if seconds is None and info.data.get("every", 1) is None:
            raise ValueError("every and every_seconds are both null; give one")
        return seconds


class Train(Section):
    """How it is learnt."""

    loss: Literal["mse", "mae", "huber", "cross_entropy"] = "mse"
    """For numbers mse, mae or huber (torch.nn.MSELoss, L1Loss, HuberLoss), on standardised targets;
    for classes cross_entropy (torch.nn.CrossEntropyLoss)."""
    huber_delta: Rate = 1.0
    """Of huber: the error where the square turns linear, in standard deviations of the target."""
    class_weights: Annotated[tuple[Rate, ...], Field(strict=False)] | None = None
    """Of cross_entropy: how much each class counts; null counts all alike."""
    label_smoothing: Fraction = 0.0
    """Of cross_entropy: share of each target that is spread over all classes."""
    optimizer: Optimizer = Adam()
    schedule: Schedule = Schedule()
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Passes over the training rows."""
    batch_size: Count = 8192
    """Rows a step; the last, smaller batch of an epoch is trained too."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the matrix products in a training step: tf32 needs a GPU and is float32 on a CPU, bfloat16
    is torch.autocast's. Weights, metrics and the exported model are float32 in any case."""
    grad_clip: Rate | None = None
    """Norm to which the gradients of a step are clipped, all together; null leaves them. adamz
    clips by its own max_grad_norm besides."""
    early_stopping: EarlyStopping | None = None
    """null trains all epochs, and the last one's weights stay."""
    checkpoint: Checkpoint = Checkpoint()

    @field_validator("huber_delta", "class_weights", "label_smoothing")
    @classmethod
    def _fits_the_loss(cls, value: Any, info: ValidationInfo) -> Any:
        key, loss = str(info.field_name), info.data.get("loss")
        wanted = "huber" if key == "huber_delta" else "cross_entropy"
        if loss not in (wanted, None) and value != cls.model_fields[key].default:
            raise ValueError(f"this is of the loss {wanted} and train.loss is {loss}")
        return value

    @field_validator("schedule")
    @classmethod
    def _adamz_has_its_own(cls, schedule: Schedule, info: ValidationInfo) -> Schedule:
        optimizer = info.data.get("optimizer")
        if optimizer is not None and optimizer.name == "adamz" and not schedule.steady:
            what = f"{schedule.name} schedule" if schedule.name != "constant" else "warmup"
            raise ValueError(
                f"adamz adjusts the learning rate itself and a {what} would overwrite it; set "
                f"train.schedule={{name: constant}}"
            )
        return schedule

    @property
    def task(self) -> Task:
        """What is learnt: numbers or classes."""
        return "classification" if self.loss == "cross_entropy" else "regression"

    @property
    def loss_metric(self) -> str | None:
        """The metric that the loss is on held-out rows, whose best value the data may know."""
        plain = self.class_weights is None and self.label_smoothing == 0
        return {"mse": "mse", "mae": "mae", "cross_entropy": "log_loss" if plain else None}.get(
            self.loss
        )


def _faults_of_rows(train: Train, rows: int, classes: int) -> Iterator[tuple[str, str]]:
    """(key, message) of each key of train that does not fit the training rows or the classes."""
    if train.class_weights is not None and len(train.class_weights) != classes:
        yield "class_weights", f"there are {classes} classes, each with its weight"
    steps = train.epochs * -(-rows // train.batch_size)
    if (warmup := train.schedule.warmup_steps(steps)) >= steps:
        yield "schedule", f"a warmup of {warmup} steps does not end: the training has {steps}"


class Gate(Section):
    """What a test metric must reach; a metric that is not a number reaches nothing."""

    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The least that passes."""
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The most that passes."""

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a gate needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max, so nothing would pass")
        return self

    def passes(self, value: float | None) -> bool:
        """Is it seen to hold? Neither None nor NaN is seen to hold anything."""
        if value is None or math.isnan(value):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        bounds = {"at least": self.min, "at most": self.max}
        return " and ".join(f"{word} {b:g}" for word, b in bounds.items() if b is not None)


class Quality(Section):
    """What the model must reach on the test rows; else nothing is published (82)."""

    metrics: dict[str, Gate] = {}
    """Gates by metric, each with min, max or both: {r2: {min: 0.9}}. Metrics are loss, mse, mae, r2
    and excess_risk for numbers; loss, log_loss, accuracy and excess_risk for classes."""


class Export(Section):
    """Which model files are written."""

    formats: Annotated[
        tuple[Literal["torchscript", "onnx", "pt2", "safetensors"], ...], Field(strict=False)
    ] = ("torchscript", "onnx", "pt2", "safetensors")
    """torchscript and onnx always; pt2 (torch.export) and safetensors (weights) besides."""
    opset: Literal["auto"] | Annotated[int, Field(ge=OPSETS[0], le=OPSETS[-1])] = "auto"
    """ONNX operator set; auto takes the lowest that serves every operator of the model well."""

    @field_validator("formats")
    @classmethod
    def _both_always(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for needed in ("torchscript", "onnx"):
            if needed not in formats:
                raise ValueError(f"{needed} is always exported; add it to the list")
        if len(set(formats)) < len(formats):
            raise ValueError("a format is named twice")
        return formats


class Verify(Section):
    """How the exported files are compared with the trained model."""

    batches: Annotated[
        tuple[Size, ...],
        Field(min_length=1, max_length=100, strict=False),
    ] = (1, 2, 3, 7, 64, 257)
    """Batch sizes that every file is run with."""


class Output(Section):
    """Where the result goes."""

    dir: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")] = "artifacts"
    """Folder for runs/, latest, failed/ and work/; made if it is not there."""
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """How many published runs are kept, and as many failed ones; an unfinished run is given up when
    so many have been published after it."""


class Config(Section):
    """The whole of job.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | Literal["run"] = 0
    """Decides data, initialisation, shuffling and dropout; `run` derives it from the run id, so
    that each run draws anew."""
    device: Annotated[str, Field(json_schema_extra={"pattern": f"^({_DEVICE})$"})] = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where it works and says why not elsewhere."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """CPU threads; auto is 1 for narrow models, else the container's CPU limit."""
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    quality: Quality = Quality()
    export: Export = Export()
    verify: Verify = Verify()
    output: Output = Output()

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(_DEVICE, device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("train")
    @classmethod
    def _loss_fits_the_task(cls, train: Train, info: ValidationInfo) -> Train:
        data = info.data.get("data")
        if data is None:
            return train
        if data.kind != "file":
            task: Task = "classification" if data.class_count else "regression"
            if train.task != task:
                wanted = "mse, mae or huber" if task == "regression" else "cross_entropy"
                message = f"data.kind {data.kind} is a {task} and needs the loss {wanted}"
                raise KeyFaults(("loss", train.loss, message))
            rows = data.split(data.samples)[0]
            found = _faults_of_rows(train, rows, data.class_count)
            if faults := [(key, getattr(train, key), message) for key, message in found]:
                raise KeyFaults(*faults)
        elif train.task == "classification" and len(data.target) > 1:
            raise KeyFaults(("loss", train.loss, "classes are those of one column in data.target"))
        return train

    @field_validator("quality")
    @classmethod
    def _metrics_are_measured(cls, quality: Quality, info: ValidationInfo) -> Quality:
        train = info.data.get("train")
        if train is not None:
            valid = METRICS[train.task]
            message = f"no metric of a {train.task}; valid ones are {', '.join(valid)}"
            unknown = [name for name in quality.metrics if name not in valid]
            if unknown:
                got = unknown if len(unknown) > 1 else unknown[0]
                raise KeyFaults(("metrics", got, message))
        return quality

    @field_validator("export")
    @classmethod
    def _gelu_needs_its_operator(cls, export: Export, info: ValidationInfo) -> Export:
        model = info.data.get("model")
        gelu = model is not None and model.activation == "gelu"
        if gelu and export.opset != "auto" and export.opset < _GELU_OPSET:
            raise ValueError(
                f"opset {export.opset} has no Gelu operator; use {_GELU_OPSET} or auto"
            )
        return export

    def require_fit(self, training_rows: int, classes: int) -> None:
        """Holds the configuration against what only a file's content tells.

        Raises:
            ConfigError: a key of train does not fit so many rows or classes.
        """
        if self.data.kind != "file":
            return
        faults = _faults_of_rows(self.train, training_rows, classes)
        if texts := [f"train.{key}: {message}" for key, message in faults]:
            raise ConfigError(*texts)

    def with_sha256(self, sha256: str) -> Self:
        """With the content that the data file must have."""
        data = self.data.model_copy(update={"sha256": sha256})
        return self.model_copy(update={"data": data})

    def for_run(self, run_id: str) -> Self:
        """With `seed: run` resolved to the number that the run id gives; else as it is."""
        if self.seed != "run":
            return self
        digest = hashlib.sha256(run_id.encode()).digest()
        # 48 bits: JSON's numbers hold them exactly, and runs hardly ever meet.
        return self.model_copy(update={"seed": int.from_bytes(digest[:6])})

    @property
    def seed_number(self) -> int:
        """The seed of a configuration that `for_run` gave."""
        assert self.seed != "run"
        return self.seed

    @property
    def opset(self) -> int:
        """The operator set that is written: 18, or 20 where the model needs Gelu."""
        if self.export.opset != "auto":
            return self.export.opset
        gelu = self.model.activation == "gelu" and self.model.hidden
        return _GELU_OPSET if gelu else OPSETS[0]
