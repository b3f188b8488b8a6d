"""sslops.patch on a package that is made here, and what importing sslops brings along."""

import copy
import pickle
import subprocess
import sys
from abc import ABC
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import sslops
from sslops.compat import _patch, _patched, info_nce_pytorch, lightly, open_clip
from sslops.compat import pytorch_metric_learning as pml
from sslops.compat import sentence_transformers as texts


def modules_of(monkeypatch, **contents):
    """Puts modules into sys.modules; their dots are written as double underscores."""
    made = {}
    for name, members in contents.items():
        module = ModuleType(name.replace("__", "."))
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        made[name] = module
    return made


@pytest.fixture
def fake(monkeypatch):
    """A lightly with its class in three modules, once under another name."""

    class NTXentLoss(nn.Module):
        def __init__(self, temperature=0.5, memory_bank_size=0, gather_distributed=False):
            super().__init__()
            self.temperature, self.gather_distributed = temperature, gather_distributed
            self.memory_bank = SimpleNamespace(size=(memory_bank_size,))

        def step(self):
            return "theirs"

        def forward(self, out0, out1):
            return self.step()

    theirs = NTXentLoss

    def update_momentum(model, model_ema, m):
        return "theirs"

    return modules_of(
        monkeypatch,
        lightly={},
        lightly__loss={"NTXentLoss": theirs},
        lightly__loss__ntx_ent_loss={"NTXentLoss": theirs, "Alias": theirs, "number": 1},
        lightly__models__utils={"update_momentum": update_momentum},
        lightly_next={"NTXentLoss": theirs},
    )


def ours(name="NTXentLoss"):
    return _patch.replacement("lightly", name)


def found(fake):
    return [vars(module).get("NTXentLoss") for module in fake.values()]


def test_patch_and_undo(fake):
    before = {name: dict(vars(module)) for name, module in fake.items()}
    theirs = fake["lightly__loss"].NTXentLoss
    patched = sslops.patch("lightly")
    assert fake["lightly__loss"].NTXentLoss is ours()
    assert issubclass(ours(), theirs)
    assert fake["lightly__loss__ntx_ent_loss"].NTXentLoss is ours()
    assert fake["lightly__loss__ntx_ent_loss"].Alias is ours()
    assert fake["lightly__models__utils"].update_momentum is ours("update_momentum")
    assert fake["lightly_next"].NTXentLoss is theirs  # another package
    patched.undo()
    patched.undo()
    assert {name: dict(vars(module)) for name, module in fake.items()} == before


def test_patch_is_a_context_manager_and_the_first_one_counts(fake):
    theirs = found(fake)
    with sslops.patch("lightly") as outer:
        once = found(fake)
        with sslops.patch("lightly"):
            assert found(fake) == once != theirs
        assert found(fake) == once
        assert isinstance(outer, sslops.Patch)
    assert found(fake) == theirs
    with pytest.raises(KeyError), sslops.patch("lightly"):
        raise KeyError
    assert found(fake) == theirs


@pytest.mark.parametrize("names", [["NTXentLoss"], "NTXentLoss"])
def test_patch_of_some_names(fake, names):
    utils = fake["lightly__models__utils"].update_momentum
    with sslops.patch("lightly", names):
        assert fake["lightly__loss"].NTXentLoss is ours()
        assert fake["lightly__models__utils"].update_momentum is utils


def test_modules_imported_while_patched_are_restored(fake, monkeypatch):
    theirs = fake["lightly__loss"].NTXentLoss
    with sslops.patch("lightly"):
        taken = {"NTXentLoss": fake["lightly__loss"].NTXentLoss}
        late = modules_of(monkeypatch, lightly__late=taken)["lightly__late"]
    assert late.NTXentLoss is theirs


def test_a_patched_class_is_the_original_wherever_the_kernels_do_not_reach(fake):
    z = torch.randn(2, 6, 4)
    with sslops.patch("lightly"):
        kind = fake["lightly__loss"].NTXentLoss
        torch.testing.assert_close(kind(0.2)(*z), sslops.nt_xent(z, temperature=0.2))
        for loss in (kind(-0.2), kind(torch.tensor(-0.2)), kind("0.2")):
            assert loss(*z) == "theirs"
        assert kind()(z[0], z[1, :3]) == "theirs"
        assert kind()(z[0].long(), z[1].long()) == "theirs"
        with pytest.raises(TypeError):
            kind(no_such=1)

        class Own(kind):
            def step(self):
                return "mine"

        assert Own()(*z) == "mine"
        assert type("Grown", (Own,), {})()(*z) == "mine"
        assert type("Same", (kind,), {"other": 1})()(*z) != "theirs"
        loss = kind()
        del loss.gather_distributed  # as of another version
        assert loss(*z) == "theirs"
        loss = kind()
        loss.memory_bank.size = 0
        assert loss(*z) == "theirs"
        loss = kind()
        loss.step = lambda: "of the object"
        assert loss(*z) == "of the object"
        update = fake["lightly__models__utils"].update_momentum
        pair = nn.Linear(2, 2), nn.Linear(2, 2)
        assert update(*pair, 1.5) == "theirs"
        assert update(*pair, m=0.0) is None
    assert torch.equal(pair[0].weight, pair[1].weight)


def test_objects_of_before_the_patch_are_of_the_patched_class(fake):
    theirs = fake["lightly__loss"].NTXentLoss
    before = theirs()
    with sslops.patch("lightly"):
        kind = fake["lightly__loss"].NTXentLoss
        assert isinstance(before, kind)
        assert issubclass(theirs, kind)
        assert issubclass(kind, theirs)
        assert not isinstance(nn.Linear(1, 1), kind)
        own = type("Own", (kind,), {})
        assert isinstance(own(), kind)
        assert isinstance(own(), own)
        assert not isinstance(before, own)
        assert not isinstance(kind(), own)
        assert not issubclass(theirs, own)
        assert isinstance(type("Both", (kind, ABC), {})(), (kind, ABC))


class Mixin:
    def step(self):
        return "mine"


def of_a_mixin(kind, theirs, monkeypatch):
    return type("Own", (Mixin, kind), {})()


def of_a_subclass_later(kind, theirs, monkeypatch):
    own = type("Own", (kind,), {})
    own.step = Mixin.step
    return own()


def of_the_patched_class(kind, theirs, monkeypatch):
    monkeypatch.setattr(kind, "step", Mixin.step)
    return kind()


def of_the_package(kind, theirs, monkeypatch):
    monkeypatch.setattr(theirs, "step", Mixin.step)
    return type("Own", (kind,), {})()


def of_the_method(kind, theirs, monkeypatch):
    monkeypatch.setattr(theirs, "forward", lambda self, out0, out1: "mine")
    return kind()


def of_the_object(kind, theirs, monkeypatch):
    loss = kind()
    loss.step = lambda: "mine"
    return loss


@pytest.mark.parametrize(
    "change",
    [of_a_mixin, of_a_subclass_later, of_the_patched_class, of_the_package, of_the_method,
     of_the_object],
)  # fmt: skip
def test_a_step_that_was_changed_counts(fake, monkeypatch, change):
    """Whoever replaces a step of the package's computation, and whenever, gets it run."""
    z, theirs = torch.randn(2, 6, 4), fake["lightly__loss"].NTXentLoss
    with sslops.patch("lightly"):
        kind = fake["lightly__loss"].NTXentLoss
        assert isinstance(kind()(*z), torch.Tensor)
        assert change(kind, theirs, monkeypatch)(*z) == "mine"


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("of_class", [True, False])
def test_a_wrapper_runs_a_loss_that_was_changed(monkeypatch, memory, of_class):
    loss, z = pml.NTXentLoss(), torch.randn(2, 6, 4)
    changed = pml.NTXentLoss if of_class else loss
    monkeypatch.setattr(changed, "forward", lambda *args, **more: torch.tensor(7.0))
    if memory:
        found = pml.CrossBatchMemory(loss, 4, 8)(z[0], torch.arange(6) % 3)
    else:
        found = pml.SelfSupervisedLoss(loss)(*z)
    assert found.item() == 7


def test_patched_objects_are_copied_and_pickled_patched_or_not(fake):
    z = torch.randn(2, 6, 4)
    with sslops.patch("lightly"):
        loss = fake["lightly__loss"].NTXentLoss(0.2)
        stored = pickle.dumps(loss)
    assert type(copy.deepcopy(loss)) is type(pickle.loads(stored)) is type(loss)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(*z), loss(*z))
    assert repr(loss) == "NTXentLoss()"
    with pytest.raises(AttributeError, match="has no lightly__DCLLoss"):
        _patched.lightly__DCLLoss  # noqa: B018


def test_patch_refuses_other_arguments(fake, monkeypatch):
    class NTXentLoss(nn.Module):
        def forward(self, out0, out1, weights):
            pass

    monkeypatch.setattr(fake["lightly__loss__ntx_ent_loss"], "NTXentLoss", NTXentLoss)
    with pytest.raises(ImportError, match=r"NTXentLoss with arguments as in \(self, out0.*weights"):
        sslops.patch("lightly")


def test_patch_of_names_that_versions_lack(monkeypatch):
    def simclr_loss_func(z1, z2, temperature=0.1, extra_pos_mask=None):
        pass

    def moco_loss_func(query, key, queue, temperature=0.1):
        pass

    made = modules_of(
        monkeypatch,
        solo={},
        solo__losses={},
        solo__losses__simclr={"simclr_loss_func": simclr_loss_func},
        solo__losses__moco={"moco_loss_func": moco_loss_func},
    )
    monkeypatch.setitem(sys.modules, "solo.losses.mocov2plus", None)
    with sslops.patch("solo_learn"):
        z = torch.randn(2, 6, 4)
        loss = made["solo__losses__simclr"].simclr_loss_func(*z, temperature=0.2)
        torch.testing.assert_close(loss, sslops.nt_xent(z, temperature=0.2))
        assert made["solo__losses__moco"].moco_loss_func is not moco_loss_func
    assert made["solo__losses__moco"].moco_loss_func is moco_loss_func
    with pytest.raises(ImportError, match=r"must have solo\.losses\.mocov2plus"):
        sslops.patch("solo_learn", "mocov2plus_loss_func")


def test_patch_refuses(fake, monkeypatch):
    with pytest.raises(ValueError, match=r"package must be one of .*'lightly'.*, got 'lightning'"):
        sslops.patch("lightning")
    for name, meant in (("Sentence-Transformers", "sentence_transformers"), ("solo", "solo_learn")):
        with pytest.raises(ValueError, match=rf"got '{name}'; did you mean '{meant}'\?"):
            sslops.patch(name)
    with pytest.raises(ValueError, match=r"classes of lightly must be of .* got \['DCLLoss'\]"):
        sslops.patch("lightly", ["NTXentLoss", "DCLLoss"])
    del fake["lightly__models__utils"].update_momentum
    theirs = found(fake)
    with pytest.raises(ImportError, match=r"must have lightly\.models\.utils\.update_momentum"):
        sslops.patch("lightly")
    assert found(fake) == theirs  # nothing half done
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"open_clip must have open_clip\.loss\.ClipLoss, got"):
        sslops.patch("open_clip")
    assert open_clip.ClipLoss is not None
    monkeypatch.setitem(
        _patch._PACKAGES, "open_clip", ("no_such", {"ClipLoss": _patch._Place("loss")})
    )
    with pytest.raises(ImportError, match="patch: open_clip is not installed, got No module"):
        sslops.patch("open_clip")


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lightly.NTXentLoss(0.2), "NTXentLoss(temperature=0.2)"),
        (lightly.NTXentLoss(gather_distributed=True),
         "NTXentLoss(temperature=0.5, gather_distributed=True)"),
        (lightly.NTXentLoss(memory_bank_size=(8, 4)).memory_bank, "_MemoryBank(size=(8, 4))"),
        (open_clip.ClipLoss(), "ClipLoss()"),
        (open_clip.ClipLoss(True, world_size=2), "ClipLoss(local_loss=True, world_size=2)"),
        (open_clip.SigLipLoss(dist_impl="shift"), "SigLipLoss(dist_impl='shift')"),
        (pml.SupConLoss(), "SupConLoss(temperature=0.1)"),
        (pml.NTXentLoss(reducer=type("SumReducer", (), {})()),
         "NTXentLoss(temperature=0.07, reducer=SumReducer)"),
        (pml.SelfSupervisedLoss(pml.SupConLoss(), symmetric=False),
         "SelfSupervisedLoss(\n  symmetric=False\n  (loss): SupConLoss(temperature=0.1)\n)"),
        (pml.CrossBatchMemory(pml.SupConLoss(), 4, 16),
         "CrossBatchMemory(\n  embedding_size=4, memory_size=16\n  (loss): "
         "SupConLoss(temperature=0.1)\n)"),
        (texts.MultipleNegativesRankingLoss(len, similarity_fct=texts.dot_score),
         "MultipleNegativesRankingLoss(scale=20.0, similarity_fct=dot_score)"),
        (texts.CachedMultipleNegativesRankingLoss(len, partition_mode="per_direction"),
         "CachedMultipleNegativesRankingLoss(scale=20.0, partition_mode='per_direction', "
         "mini_batch_size=32)"),
        (info_nce_pytorch.InfoNCE(reduction="sum"), "InfoNCE(temperature=0.1, reduction='sum')"),
    ],
)  # fmt: skip
def test_repr(loss, text):
    assert repr(loss) == text


@pytest.mark.slow
def test_importing_sslops_imports_no_peer_and_none_of_their_twins(tmp_path):
    names = ("lightly", "open_clip", "pytorch_metric_learning", "sentence_transformers", "solo",
             "info_nce", "solo_learn", "info_nce_pytorch")  # fmt: skip
    code = (
        "import sslops, sys\n"
        f"print([m for m in {names} if m in sys.modules or f'sslops.compat.{{m}}' in sys.modules])"
    )
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "[]"
