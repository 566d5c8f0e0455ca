"""The configuration of an experiment: one frozen tree, section by section the YAML file.

Every key has a default, so a preset states only what differs. A section validates what it can know alone;
`config_validation.py` has the rules between sections, and `config_loader.py` applies both.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
NUMBER_PATTERN = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"  # decimal, in YAML 1.2 and JSON
GPT2_VOCABULARY = 50257

_NUMBER = re.compile(NUMBER_PATTERN)
_Off = Literal["off", "Off", "OFF", "no", "No", "NO"]  # a reader of YAML 1.1 makes false of each


def _number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise PydanticCustomError("float_type", "must be a number")
    return value


def _head_counts(value: Any) -> Any:
    """Read `8,4,2,1` as a list, as a command line or a spreadsheet writes it."""
    if isinstance(value, str) and re.fullmatch(r"\s*\[?\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*\]?\s*", value):
        return [int(count) for count in re.findall(r"[0-9]+", value)]
    return value


def _tracking(value: Any) -> Any:
    is_off = value is False or (isinstance(value, str) and value in get_args(_Off))
    return "off" if is_off else value


Tracking = BeforeValidator(_tracking, json_schema_input_type=_Off | Literal["offline", "online", False])
Name = Annotated[str, StringConstraints(strict=True, pattern=NAME_PATTERN)]
Whole = Annotated[int, Field(strict=True)]  # refuses true and "3"; `config_schema.normalized` makes 1000 of 1e3
Flag = Annotated[bool, Field(strict=True)]  # refuses 0 and 1
Heads = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Real = Annotated[
    float, Field(allow_inf_nan=False), BeforeValidator(_number)
]  # accepts text, since readers of YAML 1.1 make text of 1e-8


class Config(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def describe_name() -> str:
    """Say in words what `NAME_PATTERN` accepts.

    Returns:
        A noun phrase.
    """
    return "a name of at most 63 letters (a-z), digits, - and _ that begins with a letter or a digit"


def nearest_name(text: str) -> tuple[str, ...]:
    """Find the valid name that resembles a text most.

    Args:
        text: A text that is no name.

    Returns:
        The name; none if the text has no letter and no digit.
    """
    plain = unicodedata.normalize("NFKD", text[:1000].replace("ß", "ss")).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:63].rstrip("-_")
    return (name,) if name else ()


def misfit(field: str, detail: str, value: object, nearest: tuple[int, ...] = ()) -> PydanticCustomError:
    """Make the error of a value that does not fit others.

    Args:
        field: Name of the field, below the place of the validator.
        detail: What is wrong, and what would be right.
        value: The value as given.
        nearest: The nearest values that fit.

    Returns:
        The error, for a validator to raise.
    """
    context = {"field": field, "value": value, "nearest": nearest}
    return PydanticCustomError("misfit", "{detail}", {"detail": detail, **context})


def divisors(n: int) -> tuple[int, ...]:
    """List the head counts that divide a width.

    Args:
        n: The width, at least 1.

    Returns:
        The divisors, ascending.
    """
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


HeadList = Annotated[
    tuple[Heads, ...],
    Field(max_length=1000),
    BeforeValidator(_head_counts, json_schema_input_type=Annotated[tuple[Heads, ...], Field(max_length=1000)] | str),
]


class ModelConfig(Config):
    """Shape of one GPT-2."""

    n_layer: Whole = Field(default=12, ge=1, le=1000)
    n_head: Heads = 12
    n_embd: Whole = Field(default=768, ge=1, le=65_536)
    vocab_size: Whole = Field(default=50304, ge=1, le=2**24)
    block_size: Whole = Field(default=1024, ge=1, le=2**17)
    n_head_list: HeadList | None = None  # wins over n_head
    head_dim: Whole | None = Field(default=None, ge=1, le=65_536)  # None: n_embd / heads, layer by layer
    dropout: Real = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer."""
        return self.n_head_list if self.n_head_list is not None else (self.n_head,) * self.n_layer

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head size of every layer."""
        return tuple(self.head_dim or self.n_embd // heads for heads in self.heads)

    @property
    def shape(self) -> dict[str, int | list[int]]:
        """Values that two models must share so that the parameters of one fit the other; without dropout."""
        sizes = {name: getattr(self, name) for name in ("n_layer", "n_embd", "vocab_size", "block_size")}
        return {**sizes, "n_head_list": list(self.heads), "head_dim": list(self.head_dims)}

    @model_validator(mode="after")
    def _one_entry_a_layer(self) -> Self:
        if self.n_head_list is not None and len(self.n_head_list) != self.n_layer:
            detail = f"has {len(self.n_head_list)} entries for n_layer {self.n_layer}; give one head count a layer"
            raise misfit("n_head_list", detail, list(self.n_head_list))
        return self

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        wrong = [] if self.head_dim else [(i, h) for i, h in enumerate(self.heads) if self.n_embd % h]
        if not wrong:
            return self
        if self.n_head_list is None:
            raise misfit("n_head", _why(self.n_head, self.n_embd), self.n_head, _nearest(self.n_head, self.n_embd))
        details = "; ".join(f"layer {i}: {_why(h, self.n_embd)}" for i, h in wrong)
        raise misfit("n_head_list", details, list(self.n_head_list), _nearest(wrong[0][1], self.n_embd))


def _why(heads: int, n_embd: int) -> str:
    near = " or ".join(map(str, _nearest(heads, n_embd)))
    return f"{heads} heads do not divide n_embd {n_embd}; the nearest counts that do are {near}"


def _nearest(heads: int, n_embd: int) -> tuple[int, ...]:
    valid = divisors(n_embd)
    below, above = [d for d in valid if d <= heads], [d for d in valid if d > heads]
    return (*below[-1:], *above[:1])


class TrainingConfig(Config):
    """One optimizer step, and the number of steps."""

    batch_size: Whole = Field(default=16, ge=1, le=2**20)  # rows of one micro batch
    sequence_length: Whole = Field(default=1024, ge=1, le=2**17)
    total_batch_size: Whole = Field(default=524_288, ge=1, le=2**40)  # tokens of one step
    max_lr: Real = Field(default=6e-4, gt=0)
    min_lr: Real = Field(default=6e-5, ge=0)
    warmup_steps: Whole = Field(default=715, ge=0)
    max_steps: Whole = Field(default=19_073, ge=1, le=2**40)
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_epochs: Real | None = Field(default=None, gt=0)
    weight_decay: Real = Field(default=0.1, ge=0)
    grad_clip: Real = Field(default=1.0, ge=0)  # 0: no clipping
    eps: Real = Field(default=1e-8, gt=0)
    on_oom: Literal["fail", "halve"] = "fail"
    gradient_checkpointing: Flag = False


class BpeTokenizer(Config):
    """A byte-level BPE trained on the dataset's own training split."""

    type: Literal["bpe"]
    vocab_size: Whole = Field(default=1024, ge=257, le=2**16)


def _is_trained(value: object) -> str:
    return "bpe" if isinstance(value, dict | BpeTokenizer) else "gpt2"


TokenizerChoice = Annotated[
    Annotated[Literal["gpt2"], Tag("gpt2")] | Annotated[BpeTokenizer, Tag("bpe")], Discriminator(_is_trained)
]


class DataConfig(Config):
    """The tokens to train on, and their source when they are missing."""

    data_dir: str = "./babylm_data"
    train_file: str = "babylm_train.npy"
    val_file: str = "babylm_val.npy"
    test_file: str = "babylm_test.npy"
    dataset: Name | None = None  # None: the prefix of train_file
    source: str | None = None
    revision: str | None = None
    text_column: str = "text"
    split: tuple[Real, Real, Real] = (0.90, 0.09, 0.01)
    dedupe: Flag = False
    documents: Literal["auto", "line", "paragraph", "marker", "file"] = "auto"  # what separates them in a text file
    special_text: Literal["keep", "strip", "split"] = "keep"  # <|endoftext|> inside a document
    on_bad_document: Literal["fail", "skip"] = "skip"  # up to 1 in 1,000, and 100 in all
    shuffle: Literal["none", "block"] = "block"
    tokenizer: TokenizerChoice = "gpt2"

    @property
    def dataset_name(self) -> str:
        """Name of the dataset: the stated one, or what precedes ``_train.npy``."""
        return self.dataset or self.train_file.removesuffix(".npy").removesuffix("_train")


class ExecutionConfig(Config):
    """What one run of the program does."""

    train: Flag = True
    test: Flag = False
    use_compile: Flag = False


class EvaluationConfig(Config):
    """Validation, samples and periodic checkpoints, each after a number of steps; and what is told of the heads."""

    val_loss_every: Whole = Field(default=250, ge=1)
    val_max_steps: Whole = Field(default=20, ge=1)
    sample_every: Whole = Field(default=250, ge=1)
    sample_num: Whole = Field(default=4, ge=0, le=256)
    sample_length: Whole = Field(default=32, ge=1, le=2**17)
    sample_top_k: Whole = Field(default=50, ge=0, le=2**24)
    sample_temperature: Real = Field(default=1.0, ge=0, le=1000)
    checkpoint_every: Whole = Field(default=5000, ge=1)
    max_checkpoints_to_keep: Whole = Field(default=5, ge=1)
    head_statistics: Flag = True  # at validations: what every head does on a fixed probe


class OutputConfig(Config):
    """Directories of runs and pictures when there is no data root."""

    exp_dir: str = "./exp"
    attention_dir: str = "./attention_outputs"


class DeviceConfig(Config):
    """The requested hardware; the run's `start` event states what is used."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    seed: Whole = Field(default=1337, ge=0, lt=2**63)
    threads: Whole | None = Field(default=None, ge=1, le=1024)  # None: the share of the cores, see docs/training.md
    tf32: Flag = True
    attention_backend: Literal["auto", "flash", "efficient", "math"] = "auto"


class CheckpointConfig(Config):
    """Which states of a run are kept, and from which one it starts."""

    save_best: Flag = True
    save_final: Flag = True
    load_checkpoint: str | None = None  # RUN[/FILE]
    resume_every_minutes: Real = Field(default=10.0, gt=0)


class TestingConfig(Config):
    """Test loss and attention pictures of a trained run."""

    __test__ = False  # pytest must not collect it

    checkpoint_path: str = "model_best.pt"  # best, final, latest, step=N or a file name
    num_test_samples: Whole = Field(default=10, ge=0, le=100_000)
    test_sample_length: Whole = Field(default=512, ge=1, le=2**17)
    max_seq_len_viz: Whole = Field(default=50, ge=1, le=2**17)  # tokens drawn
    format: Literal["png", "svg", "pdf"] = "png"
    cmap: str = "viridis"
    dpi: Whole = Field(default=150, ge=10, le=600)
    label_max_tokens: Whole = Field(default=20, ge=0)
    num_statistics_samples: Whole = Field(default=0, ge=0, le=100_000)  # test examples to measure every head on

    @property
    def checkpoint(self) -> str:
        """Reference to the checkpoint: the default, a file name, means ``best``."""
        return {"model_best.pt": "best", "model_latest.pt": "latest"}.get(self.checkpoint_path, self.checkpoint_path)


class LoggingConfig(Config):
    """What is logged during a run."""

    log_interval: Whole = Field(default=1, ge=1)
    log_to_file: Flag = True
    verbose: Flag = True
    tensorboard: Flag = False
    wandb: Annotated[Literal["off", "offline", "online"], Tracking] = "off"


class ExperimentConfig(Config):
    """The configuration of a run. `config_loader.parse_config` builds it and applies every rule."""

    schema_version: Literal[1] = 1
    experiment_name: Name = "baseline"
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    execution: ExecutionConfig = ExecutionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()
    device: DeviceConfig = DeviceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    testing: TestingConfig = TestingConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def accumulation(self) -> int:
        """Micro batches in one optimizer step of one process."""
        return self.training.total_batch_size // (self.training.batch_size * self.training.sequence_length)

    def resolved(self, *, max_steps: int, threads: int | None) -> Self:
        """Fix what the dataset and the machine decide, so that every later attempt does the same.

        Args:
            max_steps: Optimizer steps of the run, at least 1.
            threads: CPU threads of each process; None leaves the choice to the machine.

        Returns:
            A copy with these values.
        """
        training = self.training.model_copy(update={"max_steps": max_steps})
        device = self.device.model_copy(update={"threads": threads})
        return self.model_copy(update={"training": training, "device": device})
