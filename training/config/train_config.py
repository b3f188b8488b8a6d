"""The configuration of a run: one frozen dataclass a method; a field is a `--flag`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from sslops.training.config.values import fitting_values
from sslops.training.recipes import pick_recipe

__all__ = ["RunOptions", "TrainConfig", "changed_fields", "closest", "make_config"]

# These may differ between a run and its resumption: none of them touches the trained numbers.
_FREE_ON_RESUME = frozenset(
    "data_root log_every checkpoint_every tensorboard evaluate supervised_epochs simclr_control"
    " eval_train eval_test eval_data eval_root eval_stages tsne_images".split()
)

ENCODER_OPTIONS = ("width", "pool", "patch", "depth", "heads")
_AT_LEAST = {
    **dict.fromkeys("batch micro_batch epochs steps log_every checkpoint_every".split(), 1),
    **dict.fromkeys(
        "image_size train_images threads queue proj_hidden proj_dim proj_layers".split(), 1
    ),
    "num_views": 2,
}


@dataclass(frozen=True)
class TrainConfig:
    """What every method has; the defaults that matter come from the data set's recipe."""

    kind: ClassVar[Literal["image", "sound", "video"]] = "image"  # what is learnt from
    contrasts: ClassVar[str] = ""  # the method's name where a sample's negatives are the batch's
    archs: ClassVar[tuple[str, ...]] = ()  # the encoders that the method is made for; () takes all

    data: str = "digits"  # a name from `sslops list`, or a folder of images
    data_root: str | None = None  # where the data set's files lie, if not where it looks itself
    recipe: str | None = None  # defaults of another data set, see `sslops list`
    image_size: int | None = None  # side in pixels that a folder's images are brought to
    train_images: int | None = None  # train on so many images, drawn with the seed; all if unset
    validation: float = 0.1  # share of the training images held out for the kNN during training

    arch: str = "cnn-tiny"  # encoder, see `sslops list`
    width: int | None = None  # channels of the encoder's first layer, where it has the option
    pool: int | None = None  # side of the pooled feature map, where the encoder has the option
    patch: int | None = None  # side of a vit's patches in pixels
    depth: int | None = None  # blocks of a vit
    heads: int | None = None  # attention heads of a vit
    views: str = "digits"  # augmentation, see `sslops list`

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

    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    channels_last: bool = True
    checkpointing: bool = False  # compute the encoder's activations again in the backward pass
    compile: bool = False  # torch.compile of the encoder
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: replicate or shard the weights
    threads: int | None = None  # CPU threads; torch's default if unset

    log_every: int = 10  # steps between lines of metrics.jsonl
    knn_every: int = 10  # epochs between kNN measurements on the validation part; 0 for none
    checkpoint_every: int = 10  # epochs between checkpoints
    tensorboard: bool = False

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
        _fit(self, "config")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name, None)  # a method may have no such field
            if value is not None and not value >= least:
                raise ValueError(f"config: {name} must be at least {least}, got {value}")
        for name in ("lr", "weight_decay", "warmup_epochs", "knn_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"config: {name} must not be negative, got {getattr(self, name)}")
        temperature, m = getattr(self, "temperature", None), getattr(self, "key_momentum", 1.0)
        if temperature is not None and not temperature > 0:
            raise ValueError(f"config: temperature must be positive, got {temperature}")
        if not 0 <= m <= 1:
            raise ValueError(f"config: key_momentum must be in [0, 1], got {m}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"config: validation must be in [0, 1), got {self.validation}")
        if self.archs and self.arch not in self.archs:
            raise ValueError(
                f"config: arch must be {' or '.join(self.archs)}, which the method is made for, got"
                f" {self.arch}"
            )
        if self.contrasts and self.batch < 2:
            raise ValueError(
                f"{self.contrasts}: batch must be at least 2, as a sample's negatives are the"
                f" others of its batch, got {self.batch}"
            )

    def encoder_options(self) -> dict[str, Any]:
        """Options of `build_encoder` that the user or the recipe set."""
        options = {name: getattr(self, name) for name in ENCODER_OPTIONS}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class RunOptions:
    """What to do with the run folder; none of it changes a result."""

    out: str | None = None  # run folder; runs/METHOD-DATA if unset
    overwrite: bool = False  # empty an existing run folder first
    resume: bool = False  # go on from the folder's last checkpoint, with its configuration
    seeds: int = 1  # run seed, seed + 1, ... in sub-folders and report mean and deviation
    dry_run: bool = False  # print the resolved configuration and stop

    def __post_init__(self) -> None:
        _fit(self, "train")


def _fit(options: TrainConfig | RunOptions, owner: str) -> None:
    """Refuse values of other types than their fields'; paths become text."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    for name, value in fitting_values(owner, type(options), values).items():
        object.__setattr__(options, name, value)  # it is frozen


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def make_config(cls: type[ConfigT], method: str, given: Mapping[str, Any]) -> ConfigT:
    """Defaults of the class, then of the data set's recipe, then what is given.

    Options of the recipe's encoder are left out for another `arch`.
    A method with a field `version` may have recipes of its versions (DATA/METHOD-VERSION).

    Args:
        cls: the method's config class.
        method: its name in the registry.
        given: field values that override the recipe.

    Raises:
        TypeError: a name in `given` is not a field.
        ValueError: unknown recipe, or a value out of range.
    """
    known = {field.name for field in fields(cls)}
    for name in given:
        if name not in known:
            raise TypeError(f"{method}: no such option, got {name!r}{closest(name, known)}")
    given = fitting_values("config", cls, given)
    data = given.get("data", cls.data)
    variant = f"{method}-{given['version']}" if "version" in given else method
    recipe = pick_recipe(method, data, given.get("recipe"), variant)
    # A recipe may be shared by methods: what is not this method's field is another's.
    values = {name: value for name, value in recipe.fields.items() if name in known}
    meant = values.get("arch", cls.arch)
    if cls.archs and meant not in cls.archs:  # the recipe is for methods that take any encoder
        del values["arch"]
    if given.get("arch", values.get("arch", cls.arch)) != meant:
        # Width, pooling, patches are meant for the recipe's encoder; another has its own defaults.
        values = {name: value for name, value in values.items() if name not in ENCODER_OPTIONS}
    return cls(**{**values, "data": data, **given})


def changed_fields(saved: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that a resumed run asks to change although they decide its numbers."""
    before, after = asdict(saved), asdict(asked)
    return [name for name in before if name not in _FREE_ON_RESUME and before[name] != after[name]]


def closest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for a misspelt name, or what there is to choose from."""
    known = sorted(known)
    match = get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(known)}"


def default_out(method: str, data: str) -> Path:
    """Run folder for a method on a data set or a folder of images."""
    return Path("runs") / f"{method}-{Path(data).name or 'data'}"
