"""Values of a type that nobody reads: who says what is wrong, what came, and what to write."""

import os
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sslops
from sslops import *  # noqa: F403  # the table is written as users write it
from sslops.training import load_encoder, train
from sslops.training.config import RunOptions, make_config
from sslops.training.methods import METHODS

z = torch.randn(4, 3)
n = np.zeros((4, 3), dtype=np.float32)
steps, sequences = torch.randn(1, 2, 4, 3), torch.randn(2, 4, 3)
queue = sslops.KeyQueue(8, 3)
net = nn.Linear(3, 3)

# What is typed, and what the error says after its owner.
CASES = {
    "nt_xent(z, z)": "write nt_xent(torch.stack([z1, z2]), temperature=0.1), or NTXentLoss",
    "nt_xent(z, 0.5)": "all views come in one tensor, got 2 arguments",
    "nt_xent((z, z))": "z must be a tensor, got tuple; write torch.stack(z)",
    "nt_xent(n)": "z must be a tensor, got numpy's ndarray; write torch.as_tensor(z)",
    "nt_xent(net)": "z must be a tensor, got Linear; write what it returns",
    "nt_xent(z, temperature='0.1')": "must be a number or a tensor of one element, got '0.1'",
    "nt_xent(z, temperature=None)": "must be a number or a tensor of one element, got None",
    "nt_xent(z, num_views='2')": "num_views must be a whole number, got '2'",
    "nt_xent(z, weights=[1, 2, 3, 4])": "got list; write torch.tensor(weights)",
    "nt_xent(z, group=True)": "group must be a process group, Gather, Ring or None, got bool",
    "info_nce(z, z, queue=queue)": "queue must be a tensor, got KeyQueue; write queue.keys",
    "info_nce(z, z, z)": "got 3 arguments; write info_nce(queries, keys, queue=negatives, temp",
    "info_nce(z, z, targets=[0, 1, 2, 3])": "must be an integer tensor, got list; write torch.",
    "info_nce(z, None)": "keys must be a tensor, got NoneType",
    "clip_loss(z, z, '10')": "logit_scale must be a number or a tensor of one element, got '10'",
    "clip_loss(z, z, 10.0, label_smoothing=None)": "label_smoothing must be a number, got None",
    "sigmoid_loss(z, z, 10.0, '-10')": "logit_bias must be a number or a tensor of one element",
    "sup_con(z, [0, 0, 1, 1])": "labels must be an integer tensor, got list; write torch.tensor(",
    "sup_con(z, n)": "labels must be an integer tensor, got numpy's ndarray; write torch.as_tensor",
    "cpc_loss([z], z)": "predictions must be a tensor, got list; write torch.stack(predictions)",
    "cpc_loss(steps, n)": "targets must be a tensor, got numpy's ndarray",
    "enqueue_(queue, queue.pointer, z)": "queue must be a tensor, got KeyQueue; write queue.keys",
    "enqueue_(queue.keys, 0, z)": "pointer must be an int64 tensor, got int",
    "ema_update_(net.state_dict(), net.state_dict(), 0.9)": "needs two modules or two lists of ten",
    "ema_update_(net.parameters, net.parameters, 0.9)": "got method and method",
    "ema_update_([z], [n], 0.9)": "needs tensors, got numpy's ndarray; write torch.as_tensor(",
    "ema_update_([z], [z.clone()], '0.9')": "momentum must be a number or a tensor of one element",
    "cosine_momentum('1', 2)": "step must be a number, got '1'",
    "load_queue('moco.pth')": "got str; write torch.load(path), or the part of it",
    "load_queue(net)": "got Linear; write module.state_dict()",
    "chance('nt_xent', batch='3')": "batch must be a whole number, got '3'",
    "use_backend(None)": "backend must be one of",
    "patch(np)": "package must be one of",
    "MomentumEncoder([net])": "encoder must be a module, got list",
    "MomentumEncoder(net, momentum='0.9')": "momentum must be a number, got '0.9'",
    "KeyQueue('8', 3)": "size must be a whole number, got '8'",
    "KeyQueue(8, (3,))": "dim must be a whole number, got tuple",
    "queue.enqueue([z])": "keys must be a tensor, got list; write torch.stack(keys)",
    "GradCache(3, ClipLoss(), 2)": "encoders and loss must be modules or functions, got int",
    "GradCache(net, 'mean', 2)": "encoders and loss must be modules or functions, got str",
    "NTXentLoss('0.1')": "temperature must be a number, got str",
    "NTXentLoss()(n, n)": "views must be a tensor, got numpy's ndarray",
    "NTXentLoss()([z, z])": "views must be a tensor, got list; write torch.stack(views)",
    "InfoNCELoss()(z, z, queue=queue)": "queue must be a tensor, got KeyQueue; write queue.keys",
    "ClipLoss()(z, None)": "text must be a tensor, got NoneType",
    "SigmoidLoss()(z, n)": "text must be a tensor, got numpy's ndarray",
    "SupConLoss()(z, [0, 0, 1, 1])": "labels must be an integer tensor, got list",
    "CPCLoss()(steps, n)": "targets must be a tensor, got numpy's ndarray",
    "nt_xent(z, group=Gather(3))": "Gather takes a process group or None, got int",
    "nt_xent(z, group=Ring(3))": "Ring takes a process group or None, got int",
}
OWNERS = {
    "queue.enqueue": "KeyQueue", "InfoNCELoss": "info_nce", "ClipLoss": "clip_loss",
    "SigmoidLoss": "sigmoid_loss", "SupConLoss": "sup_con", "CPCLoss": "cpc_loss",
}  # fmt: skip


@pytest.mark.parametrize("typed", CASES)
def test_who_says_what_to_write(typed):
    called = typed.partition("(")[0]
    with pytest.raises((TypeError, ValueError)) as error:
        eval(typed)
    said = str(error.value)
    assert said.startswith(f"{OWNERS.get(called, called)}: ")
    assert CASES[typed] in said
    assert len(said) < 500


def test_every_public_name_is_in_the_table():
    taken = {word for typed in CASES for word in re.findall(r"\w+", typed)}
    given_nothing = {"HAS_EXTENSION", "__version__", "backend", "backends"}
    returned = {"Backend", "Patch", "CPCStats", "InfoNCEStats", "NTXentStats", "SupConStats"}
    assert set(sslops.__all__) - taken == given_nothing | returned


TRAINED = {
    "data": (torch.utils.data.TensorDataset(z), "a name that `sslops list` shows or the path of a"),
    "views": (
        lambda image: image,
        "the name of an augmentation that `sslops list` shows, got func",
    ),
    "arch": (net, "the name of an encoder that `sslops list` shows, got Linear"),
    "eval_data": (n, "a name that `sslops list` shows or the path of a folder, got ndarray"),
    "optimizer": (torch.optim.SGD, "one of adamw, sgd, lars, got the class SGD"),
    "precision": (torch.bfloat16, "one of auto, fp32, bf16, got dtype"),
    "device": (0, "auto, cpu, cuda, cuda:1 or a device of torch, got 0"),
    "lr": ("0.1", "a number, got '0.1'"),
    "batch": (64.0, "a whole number, got 64.0"),
    "steps": (True, "a whole number, got True"),
    "epochs": (None, "a whole number, got None"),
    "channels_last": (1, "True or False, got 1"),
    "out": (True, "the path of a folder, got True"),
    "overwrite": ("no", "True or False, got 'no'"),
    "resume": (1, "True or False, got 1"),
    "seeds": ("3", "a whole number, got '3'"),
    "console": (print, "a Console, got builtin_function_or_method; Console(quiet=True)"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_train_says_what_to_write_and_leaves_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, meant = TRAINED[name]
    with pytest.raises((TypeError, ValueError)) as error:
        train("simclr", **{"steps": 1, "evaluate": False, name: value})
    owner = "config" if name in METHODS["simclr"].config.__dataclass_fields__ else "train"
    assert str(error.value).startswith(f"{owner}: {name} must be {meant}")
    assert not os.listdir()


def test_of_several_types_all_are_named():
    cls = METHODS["cpc-audio"].config
    assert cls(negatives=3).negatives == 3
    with pytest.raises(ValueError, match=r"one of all, .* or a whole number, got 'any'$"):
        cls(negatives="any")


@pytest.mark.parametrize("method", [3, None, nn.Linear, ["simclr"]])
def test_a_method_is_a_name(method):
    with pytest.raises(TypeError, match="method must be a name that `sslops list` shows, got "):
        train(method)


@pytest.mark.parametrize("method", [*METHODS, None])
def test_every_field_of_every_configuration_refuses_an_object(method):
    cls = RunOptions if method is None else METHODS[method].config
    refused = "must be (one of |True|a |an |the |auto|text)"
    for field in fields(cls):
        with pytest.raises((TypeError, ValueError), match=f"{field.name} {refused}.*got object$"):
            cls(**{field.name: object()})
        if method is not None:
            with pytest.raises((TypeError, ValueError), match=f"{field.name} {refused}"):
                make_config(cls, method, {field.name: object()})


def test_what_means_the_same_is_taken(tmp_path):
    """Paths, numpy's numbers and torch's devices: the run's config.json holds plain values."""
    cls = METHODS["simclr"].config
    given = {"data": tmp_path, "steps": np.int64(3), "lr": np.float32(0.5), "momentum": 1}
    config = make_config(cls, "simclr", {**given, "device": torch.device("cpu")})
    assert (config.data, config.device, config.momentum) == (str(tmp_path), "cpu", 1)
    assert [type(value) for value in (config.steps, config.lr)] == [int, float]
    assert (config.steps, config.lr) == (3, 0.5)
    assert RunOptions(out=Path("runs") / "x").out == "runs/x"


def test_load_encoder_takes_a_path():
    with pytest.raises(TypeError, match="load_encoder: path must be that of a run folder"):
        load_encoder(net)
