"""sslops.patch on a package that is made here, and what importing sslops brings along."""

import subprocess
import sys
from types import ModuleType

import pytest

import sslops
from sslops.compat import _patch, info_nce_pytorch, lightly, open_clip
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
    theirs = type("NTXentLoss", (), {})

    def update_momentum():
        pass

    return modules_of(
        monkeypatch,
        lightly={},
        lightly__loss={"NTXentLoss": theirs},
        lightly__loss__ntx_ent_loss={"NTXentLoss": theirs, "Alias": theirs, "number": 1},
        lightly__models__utils={"update_momentum": update_momentum},
        lightly_next={"NTXentLoss": theirs},
    )


def found(fake):
    return [vars(module).get("NTXentLoss") for module in fake.values()]


def test_patch_and_undo(fake):
    before = {name: dict(vars(module)) for name, module in fake.items()}
    theirs = fake["lightly__loss"].NTXentLoss
    patched = sslops.patch("lightly")
    assert fake["lightly__loss"].NTXentLoss is lightly.NTXentLoss
    assert fake["lightly__loss__ntx_ent_loss"].NTXentLoss is lightly.NTXentLoss
    assert fake["lightly__loss__ntx_ent_loss"].Alias is lightly.NTXentLoss
    assert fake["lightly__models__utils"].update_momentum is lightly.update_momentum
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
        assert fake["lightly__loss"].NTXentLoss is lightly.NTXentLoss
        assert fake["lightly__models__utils"].update_momentum is utils


def test_modules_imported_while_patched_are_restored(fake, monkeypatch):
    theirs = fake["lightly__loss"].NTXentLoss
    with sslops.patch("lightly"):
        taken = {"NTXentLoss": fake["lightly__loss"].NTXentLoss}
        late = modules_of(monkeypatch, lightly__late=taken)["lightly__late"]
    assert late.NTXentLoss is theirs


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
    monkeypatch.setitem(_patch._PACKAGES, "open_clip", ("no_such", {"ClipLoss": "loss"}))
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
