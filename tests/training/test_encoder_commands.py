"""Every encoder against every command, and every method against every encoder."""

import io
import re

import pytest
import torch
from safetensors.torch import load_file

from sslops.training import load_encoder, train
from sslops.training.cli import main
from sslops.training.loggers.console import Console
from sslops.training.methods import METHODS
from sslops.training.models import encoder_names
from sslops.training.storage.checkpoint import load

from .method_cases import METHOD_CASES
from .test_training import assert_same

pytestmark = pytest.mark.slow

FIRST = {name: fields for name, fields in reversed(METHOD_CASES)}  # of a method, its first case
MADE_FOR = {arch for entry in METHODS.values() for arch in entry.config.archs}
# The smallest of each; a new encoder is tried at 8.
WIDTH = {"vit-tiny": 12, "vit-small": 12, "vit-base": 12}
SMALL = {"batch": 16, "steps": 2, "knn_every": 0, "threads": 1}

# What an encoder cannot do for a method, in the words of the error. All else must train.
MADE_FOR_ANOTHER = "config: arch must be {archs}, which the method is made for, got {arch}"
VITS = ("vit-tiny", "vit-small", "vit-base")
STRIDE = "stride must be one of 2, 1 for images of 16 pixels and a last map of 8 x 8, got 4"
DOUBLED = "last map must grow to 16 pixels by doubling its sides, got one of 3 x 3"
REFUSED = {
    ("relative-patch", "cpc-patches"): "tiles of 3 pixels: PatchEncoder: image sides must be at",
    **{("relative-patch", vit): "tiles of 3 pixels: ViT: image sides must be" for vit in VITS},
    ("jigsaw", "cpc-patches"): "tiles of 6 pixels: PatchEncoder: image sides must be at",
    **{(name, "cpc-patches"): DOUBLED for name in ("colorization", "split-brain")},
    **{("colorization", arch): STRIDE for arch in ("cnn-tiny", *VITS)},
    ("split-brain", "cnn-tiny"): STRIDE,
    ("split-brain", "frame-cnn"): "frame-cnn takes 1 or 3 channels, got 2",
    **{("split-brain", vit): "width must be a multiple of 4 and of the" for vit in VITS},
}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def fields_of(name, arch):
    """The method's case with another encoder, of its smallest width."""
    kept = {key: value for key, value in FIRST[name].items() if key not in ("width", "patch")}
    if METHODS[name].config.archs:
        kept = FIRST[name]
    depth = {"depth": 1} if arch.startswith("vit") else {}
    return {**SMALL, **kept, **depth, "arch": arch, "width": WIDTH.get(arch, 8)}


def flags_of(fields):
    return [
        part for key, value in fields.items() for part in (f"--{key.replace('_', '-')}", f"{value}")
    ]


@pytest.mark.parametrize("arch", sorted({*encoder_names(), *MADE_FOR}))
def test_every_encoder_goes_through_every_command(arch, tmp_path, capsys):
    name = next((each for each, entry in METHODS.items() if arch in entry.config.archs), "simclr")
    fields = fields_of(name, arch)
    run, flags = str(tmp_path / "run"), flags_of(fields)
    few = ["--train-images", "64", "--eval-train", "64", "--eval-test", "32", "--tsne-images", "24"]
    if METHODS[name].kind != "image":
        few = few[2:]
    assert main(["train", name, *flags, *few, "--supervised-epochs", "1", "--out", run]) == 0
    trained = load_file(f"{run}/encoder.safetensors")
    whole = load(tmp_path / "run" / "checkpoint" / "last.pt")
    assert_same(trained, dict(load_encoder(run).state_dict()))

    assert main(["train", name, "--resume", "--no-evaluate", "--out", run]) == 0
    assert_same(trained, load_file(f"{run}/encoder.safetensors"))
    assert_same(whole["method"], load(tmp_path / "run" / "checkpoint" / "last.pt")["method"])

    assert main(["export", run, "--to", str(tmp_path / "other.safetensors")]) == 0
    assert_same(trained, load_file(tmp_path / "other.safetensors"))
    loaded = load_encoder(tmp_path / "other.safetensors")
    assert_same(trained, dict(loaded.state_dict()))

    assert main(["eval", run]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["compare", run, "--out", str(tmp_path / "compare.html")]) == 0
    assert main(["plan", name, *flags, "--no-probe"]) == 0
    assert arch in capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("arch", sorted({*encoder_names(), *MADE_FOR}))
def test_every_method_trains_every_encoder_or_says_why_not(name, arch, tmp_path):
    """A refusal is an error of the user, before the folder is made."""
    archs = METHODS[name].config.archs
    words = REFUSED.get((name, arch))
    if archs and arch not in archs:
        words = MADE_FOR_ANOTHER.format(archs=" or ".join(archs), arch=arch)
    elif arch not in encoder_names() and not archs:
        words = f"arch must be one of {', '.join(encoder_names())}, got '{arch}'"
    fields = {**fields_of(name, arch), "evaluate": False, "out": tmp_path / "run"}
    if words is not None:
        with pytest.raises(ValueError, match=re.escape(words)):
            train(name, console=Console(io.StringIO()), **fields)
        assert not (tmp_path / "run").exists()
        return
    result = train(name, console=Console(io.StringIO()), **fields)
    assert_same(dict(result.encoder.state_dict()), dict(load_encoder(result.dir).state_dict()))


NEEDS = {"image": "needs images", "sound": "needs sound", "video": "needs videos"}
OF_KIND = {"image": "digits", "sound": "tones", "video": "moving-shapes"}


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize("name", METHODS)
def test_data_of_another_kind_is_what_the_error_is_about(name, kind, tmp_path):
    """Not the encoder that the data set's recipe has for other methods."""
    needed = METHODS[name].kind
    if kind == needed:
        return
    with pytest.raises(ValueError, match=f"{name}: {NEEDS[needed]}, got .*{OF_KIND[kind]}"):
        train(name, data=OF_KIND[kind], out=tmp_path / "run", console=Console(io.StringIO()))
    assert not (tmp_path / "run").exists()
