"""The fields that every method has, in groups; each group checks its own."""

from dataclasses import dataclass
from typing import Any, Literal

from sslops.training.config.checks import at_least, not_negative

__all__ = [
    "ENCODER_OPTIONS",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "OptimisationConfig",
    "SystemConfig",
]

ENCODER_OPTIONS = ("width", "pool", "patch", "depth", "heads")


class _Group:
    """The end of the chain in which every group checks its fields."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class DataConfig(_Group):
    """What is learnt from, and how it is augmented."""

    data: str = "digits"  # a name from `sslops list`, or a folder of images
    data_root: str | None = None  # where the data set's files lie, if not where it looks itself
    recipe: str | None = None  # defaults of another data set, see `sslops list`
    image_size: int | None = None  # side in pixels that a folder's images are brought to
    train_images: int | None = None  # train on so many images, drawn with the seed; all if unset
    validation: float = 0.1  # share of the training images held out for the kNN during training
    views: str = "digits"  # augmentation, see `sslops list`

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "image_size", "train_images")
        if not 0 <= self.validation < 1:
            raise ValueError(f"config: validation must be in [0, 1), got {self.validation}")


@dataclass(frozen=True)
class EncoderConfig(_Group):
    """The network that is trained to be exported."""

    arch: str = "cnn-tiny"  # encoder, see `sslops list`
    width: int | None = None  # channels of the encoder's first layer, where it has the option
    pool: int | None = None  # side of the pooled feature map, where the encoder has the option
    patch: int | None = None  # side of a vit's patches in pixels
    depth: int | None = None  # blocks of a vit
    heads: int | None = None  # attention heads of a vit

    def encoder_options(self) -> dict[str, Any]:
        """Options of `build_encoder` that the user or the recipe set."""
        options = {name: getattr(self, name) for name in ENCODER_OPTIONS}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class OptimisationConfig(_Group):
    """How many updates of what kind."""

    batch: int = 256  # images a step, over all processes
    micro_batch: int | None = None  # images that a process encodes at once; its share if unset
    epochs: int = 100
    steps: int | None = None  # instead of epochs
    group_by: str | None = None  # each batch from one value of it: label, or a factor (speaker)
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 1e-3  # at batch 256
    lr_scaling: Literal["linear", "sqrt", "none"] = "none"  # how lr grows with batch / 256
    warmup_epochs: float = 5.0  # in which lr rises linearly
    schedule: Literal["cosine", "step"] = "cosine"  # to zero, or x 0.1 at 60 and 80 % of the steps
    weight_decay: float = 1e-4  # never on biases, batch norm and other 1-d parameters
    momentum: float = 0.9  # of sgd and lars
    trust: float = 1e-3  # trust coefficient of lars
    clip: float | None = None  # largest norm of the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch", "micro_batch", "epochs", "steps")
        not_negative(self, "lr", "weight_decay", "warmup_epochs")


@dataclass(frozen=True)
class SystemConfig(_Group):
    """Where and how it is computed, and what is written meanwhile."""

    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    channels_last: bool = True
    checkpointing: bool = False  # compute the encoder's activations again in the backward pass
    compile: bool = False  # torch.compile of the encoder
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: replicate or shard the weights
    threads: int | None = None  # CPU threads; torch's default if unset

    log_every: int = 10  # steps between lines of metrics.jsonl
    checkpoint_every: int = 10  # epochs between checkpoints
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "log_every", "checkpoint_every", "threads")


@dataclass(frozen=True)
class EvaluationConfig(_Group):
    """What is measured while training goes on, and when it is over."""

    knn_every: int = 10  # epochs between kNN measurements on the validation part; 0 for none
    evaluate: bool = True  # against controls, when training is over
    supervised_epochs: int | None = None  # of the supervised control; a quarter of epochs if unset
    simclr_control: bool = False  # SimCLR with the same encoder and epochs as a control, too
    eval_train: int | None = 10_000  # labelled images the probes may use
    eval_test: int | None = 10_000
    eval_data: str | None = None  # probe on this data set or folder as well
    eval_root: str | None = None  # where its files lie, if not where it looks itself
    eval_stages: bool = True  # a linear probe of every stage of the encoder, beside the last
    tsne_images: int = 1000  # test images in the t-SNE picture

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "knn_every")
