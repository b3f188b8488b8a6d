"""The configuration of a run: one frozen dataclass a method; a field is a `--flag`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from sslops.training.config.checks import at_least, positive
from sslops.training.config.groups import (
    ENCODER_OPTIONS,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    OptimisationConfig,
    SystemConfig,
)
from sslops.training.config.values import fitting_values
from sslops.training.recipes import pick_recipe

__all__ = [
    "RunOptions",
    "TrainConfig",
    "VideoConfig",
    "changed_fields",
    "closest",
    "default_out",
    "departures",
    "make_config",
    "unread_fields",
]

# These may differ between a run and its resumption: none of them touches the trained numbers.
_FREE_ON_RESUME = frozenset(
    "data_root log_every checkpoint_every tensorboard evaluate supervised_epochs simclr_control"
    " eval_train eval_test eval_data eval_root eval_stages tsne_images".split()
)


@dataclass(frozen=True)
class TrainConfig(EvaluationConfig, SystemConfig, OptimisationConfig, EncoderConfig, DataConfig):
    """What every method has; the defaults that matter come from the data set's recipe.

    A method's own fields, and what it declares for those who do not know it, stand in a subclass.
    """

    # What is learnt from: how batches are made, what is evaluated, and beside which controls.
    kind: ClassVar[Literal["image", "sound", "video"]] = "image"
    uses_labels: ClassVar[bool] = False  # it needs no control that is trained with labels
    contrasts: ClassVar[str] = ""  # the method's name where a sample's negatives are the batch's
    archs: ClassVar[tuple[str, ...]] = ()  # the encoders that the method is made for; () takes all
    # Name of a guard against a shortcut -> the fields that switch it off; see `sslops audit`.
    guards: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Fields of the groups that the method does not read -> what does, "" if nothing.
    unread: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        _fit(self, "config")
        super().__post_init__()
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


@dataclass(frozen=True)
class VideoConfig(TrainConfig):
    """What every method on videos has: how objects are followed when its training is over."""

    kind: ClassVar[Literal["image", "sound", "video"]] = "video"

    normalize: bool = True  # compare by cosine; the paper's similarity is the plain product
    eval_temperature: float = 0.1  # in propagation
    eval_radius: int | None = 6  # in cells; everywhere if unset
    top_k: int = 5  # places that a mask is copied from
    context: int = 7  # frames that are copied from, beside the first
    eval_video: str | None = None  # a folder of videos with masks to follow as well
    eval_size: int | None = 120  # shorter side of its frames in pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "top_k")
        positive(self, "eval_temperature")


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


def departures(method: str, config: TrainConfig) -> dict[str, Any]:
    """The fields that are not as the recipe of the data and the encoder has them."""
    named = {key: getattr(config, key) for key in ("recipe", "version") if hasattr(config, key)}
    named = {key: value for key, value in named.items() if value is not None}
    named["data"] = config.data
    first = {key: getattr(type(config), key) for key in named}
    first["arch"] = make_config(type(config), method, named).arch
    # Options of the recipe's encoder are not those of another.
    plain = asdict(make_config(type(config), method, {**named, "arch": config.arch}))
    usual = {**plain, **first}
    return {key: value for key, value in asdict(config).items() if value != usual[key]}


def unread_fields(config: TrainConfig) -> dict[str, str]:
    """Fields that the run does not read -> what else does, "" if nothing does."""
    unread = dict(config.unread)
    if config.optimizer == "adamw":
        unread["momentum"] = ""
    if config.optimizer != "lars":
        unread["trust"] = ""
    return unread


def closest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for a misspelt name, or what there is to choose from."""
    known = sorted(known)
    match = get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(known)}"


def default_out(method: str, data: str) -> Path:
    """Run folder for a method on a data set or a folder of images."""
    return Path("runs") / f"{method}-{Path(data).name or 'data'}"
