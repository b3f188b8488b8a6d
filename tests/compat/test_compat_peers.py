"""Values and gradients against the installed packages; `make peers` installs them.

A package that is missing skips its tests by name. All are imported as they are, but for solo-learn,
which wants a torch of its time: what its losses do not use are empty stand-ins.
"""

import importlib
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sslops
from bench.providers.stand_ins import import_peer
from sslops.compat import (
    info_nce_pytorch,
    lightly,
    open_clip,
    pytorch_metric_learning,
    sentence_transformers,
    solo_learn,
)
from tests.compat import _migration
from tests.compat._compat import assert_same_loss

pytestmark = pytest.mark.peer
B, D, K = 16, 8, 64


def peer(module):
    solo = module.split(".")[0] == "solo"
    try:
        return import_peer(module) if solo else importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported: {error}")


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly(temperature):
    theirs = peer("lightly.loss").NTXentLoss
    views = torch.randn(2, B, D)
    assert_same_loss(
        lightly.NTXentLoss(temperature), theirs(temperature), views, scale=1 / temperature
    )
    assert_same_loss(lightly.NTXentLoss(), theirs(), views, scale=2)


def test_lightly_bank():
    torch.manual_seed(1)
    theirs = peer("lightly.loss").NTXentLoss(0.2, (K, D))
    torch.manual_seed(1)
    ours = lightly.NTXentLoss(0.2, (K, D))
    for _ in range(2 * K // B + 1):  # batches divide the bank: lightly keeps all rows
        assert torch.equal(ours.memory_bank.bank, theirs.memory_bank.bank)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)
        out0, out1 = torch.randn(2, B, D, requires_grad=True)
        values = [loss(out0, out1) for loss in (ours, theirs)]
        torch.testing.assert_close(*values)
        grads = [torch.autograd.grad(value, (out0, out1)) for value in values]
        torch.testing.assert_close(*grads)
    ours.load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match=r"memory_bank\.bank"):  # as the page says
        theirs.load_state_dict(ours.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=False)
    with pytest.raises(ValueError, match="dim"):
        peer("lightly.loss").NTXentLoss(memory_bank_size=K)


def test_lightly_update_momentum():
    theirs = peer("lightly.models.utils").update_momentum
    model, one, two = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
    two.load_state_dict(one.state_dict())
    lightly.update_momentum(model, one, 0.99)
    theirs(model, two, 0.99)
    torch.testing.assert_close(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_open_clip(dtype):
    package = peer("open_clip.loss")
    rows = (unit(B, D), unit(B, D), torch.tensor(14.3))
    bias = torch.tensor(-10.0)
    assert_same_loss(open_clip.ClipLoss(), package.ClipLoss(), rows, scale=15, dtype=dtype)
    assert_same_loss(
        open_clip.SigLipLoss(), package.SigLipLoss(), (*rows, bias), scale=25, dtype=dtype
    )
    with_bias = [loss.ClipLoss()(*rows, bias, output_dict=True) for loss in (open_clip, package)]
    torch.testing.assert_close(*with_bias)
    for name, more in (("ClipLoss", ()), ("SigLipLoss", (dtype,))):
        pair = [getattr(loss, name)() for loss in (open_clip, package)]
        torch.testing.assert_close(*[loss.get_logits(*rows, logit_bias=bias) for loss in pair])
        assert torch.equal(*[loss.get_ground_truth(torch.device("cpu"), *more, B) for loss in pair])


LABELS = [torch.arange(B // 2).repeat(2), torch.arange(B) % 3, torch.randint(-2, 5, (B,))]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_pytorch_metric_learning(name, labels):
    package = peer("pytorch_metric_learning.losses")
    ours, theirs = getattr(pytorch_metric_learning, name), getattr(package, name)
    rows, keys, key_labels = torch.randn(B, D), torch.randn(B + 3, D), torch.arange(B + 3) % 4
    for options in ({}, {"temperature": 0.2}):
        pair = ours(**options), theirs(**options)
        assert_same_loss(*[lambda z, f=f: f(z, labels) for f in pair], [rows], scale=15)
    assert_same_loss(
        *[lambda z, k, f=f: f(z, labels, ref_emb=k, ref_labels=key_labels) for f in pair],
        [rows, keys],
        scale=5,
    )
    chosen = peer("pytorch_metric_learning.miners").MultiSimilarityMiner()(rows, labels)
    triplets = peer("pytorch_metric_learning.miners").TripletMarginMiner()(rows, labels)
    for indices in (chosen, triplets):
        assert_same_loss(
            *[lambda z, f=f, i=indices: f(z, labels, i) for f in pair], [rows], scale=5
        )
    for loss in ours(), theirs():
        assert loss(rows, torch.zeros(B, dtype=torch.int64)).item() == 0
        assert [loss(rows[:n], labels[:n]).item() for n in (0, 1)] == [0, 0]
    distances, reducers = (peer(f"pytorch_metric_learning.{m}") for m in ("distances", "reducers"))
    for options in (
        {"distance": distances.DotProductSimilarity()},
        {"distance": distances.CosineSimilarity(), "reducer": reducers.SumReducer()},
    ):
        torch.testing.assert_close(*[f(**options)(rows, labels) for f in (ours, theirs)])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_pytorch_metric_learning_views(name, symmetric):
    package = peer("pytorch_metric_learning.losses")
    ours, theirs = (
        module.SelfSupervisedLoss(getattr(module, name)(), symmetric)
        for module in (pytorch_metric_learning, package)
    )
    assert_same_loss(ours, theirs, torch.randn(2, B, D), scale=15)
    around = package.SelfSupervisedLoss(getattr(pytorch_metric_learning, name)(), symmetric)
    assert_same_loss(around, theirs, torch.randn(2, B, D), scale=15)  # theirs around ours


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_pytorch_metric_learning_memory(name):
    package = peer("pytorch_metric_learning.losses")
    ours = pytorch_metric_learning.CrossBatchMemory(getattr(pytorch_metric_learning, name)(), D, 40)
    theirs = package.CrossBatchMemory(getattr(package, name)(), D, 40)
    around = package.CrossBatchMemory(getattr(pytorch_metric_learning, name)(), D, 40)
    for step in range(6):
        labels = torch.randint(6, (B,))
        z = torch.randn(B, D, requires_grad=True)
        entering = torch.arange(B) % 2 == 0 if step == 3 else None
        values = [loss(z, labels, enqueue_mask=entering) for loss in (ours, theirs, around)]
        grads = [torch.autograd.grad(value, z)[0] for value in values]
        for value, grad in zip(values[1:], grads[1:], strict=True):
            torch.testing.assert_close(values[0], value)
            torch.testing.assert_close(grads[0], grad)
        assert torch.equal(ours.embedding_memory, theirs.embedding_memory)
        assert ours.queue_idx == theirs.queue_idx
    ours.load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match="_extra_state"):  # as the page says
        theirs.load_state_dict(ours.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=False)


ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@pytest.mark.parametrize(
    ("directions", "mode"), [(ALL[:1], "joint"), (ALL, "joint"), (ALL[:3:2], "per_direction")]
)
@pytest.mark.parametrize("columns", [2, 4])
def test_sentence_transformers(columns, directions, mode):
    package = peer("sentence_transformers.sentence_transformer.losses")
    options = {"directions": directions, "partition_mode": mode}
    similarity = peer("sentence_transformers.util").cos_sim
    rows, model = torch.randn(columns, B, 5), _migration.Encoder()
    name = "MultipleNegativesRankingLoss"
    ours = getattr(sentence_transformers, name)(model, similarity_fct=similarity, **options)
    theirs = getattr(package, name)(model, **options)
    pair = ours, theirs
    assert_same_loss(
        *[lambda *z, f=f: f.compute_loss_from_embeddings(list(z), None) for f in pair],
        torch.randn(columns, B, D),
        scale=20,
    )
    assert ours.get_config_dict() == theirs.get_config_dict()
    batch = [{"input_ids": each} for each in rows]
    grads = []
    for module in (sentence_transformers, package):
        model.zero_grad()
        loss = getattr(module, "Cached" + name)(model, mini_batch_size=5, **options)
        (2 * loss(batch, None)).backward()
        grads.append(model.layer.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cached", ["", "Cached"])
def test_sentence_transformers_matryoshka(cached):
    package = peer("sentence_transformers.sentence_transformer.losses")
    model, name = _migration.Encoder(), cached + "MultipleNegativesRankingLoss"
    model.get_embedding_dimension = lambda: 16
    batch, results = [{"input_ids": each} for each in torch.randn(3, B, 5)], []
    for module in (sentence_transformers, package):
        model.zero_grad()
        options = {"mini_batch_size": 5} if cached else {}
        inner = getattr(module, name)(model, **options)
        loss = package.MatryoshkaLoss(model, inner, [16, 8, 4], [1.0, 0.5, 0.3])
        with torch.no_grad():
            quiet = loss(batch, None)
        value = loss(batch, None)
        value.backward()
        results.append((value.detach(), quiet, model.layer.weight.grad.clone()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_solo_learn():
    # the version in the index takes two views, and has MoCo's loss under an older name
    losses = peer("solo.losses")
    assert_same_loss(
        lambda a, b: solo_learn.simclr_loss_func(torch.cat([a, b]), torch.arange(B).repeat(2)),
        losses.simclr_loss_func,
        torch.randn(2, B, D),
        scale=10,
    )
    queue = unit(K, D).T
    assert_same_loss(
        lambda q, k: solo_learn.mocov2plus_loss_func(q, k, queue),
        lambda q, k: losses.moco_loss_func(q, k, queue.to(q.dtype)),
        (unit(B, D), unit(B, D)),
        scale=10,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_info_nce(reduction):
    package = peer("info_nce")
    rows, shared, paired = torch.randn(2, B, D), torch.randn(K, D), torch.randn(B, 5, D)
    for mode, negatives in (("unpaired", []), ("unpaired", [shared]), ("paired", [paired])):
        options = {"reduction": reduction, "negative_mode": mode}
        pair = info_nce_pytorch.InfoNCE(**options), package.InfoNCE(**options)
        assert_same_loss(*pair, [*rows, *negatives], scale=10)


@pytest.mark.parametrize(
    ("package", "module", "name"),
    [
        ("lightly", "lightly.loss", "NTXentLoss"),
        ("open_clip", "open_clip.factory", "SigLipLoss"),
        ("pytorch_metric_learning", "pytorch_metric_learning.losses", "CrossBatchMemory"),
        (
            "sentence_transformers",
            "sentence_transformers.sentence_transformer.losses",
            "CachedMultipleNegativesRankingLoss",
        ),
        ("info_nce_pytorch", "info_nce", "InfoNCE"),
    ],
)
def test_patch(package, module, name):
    module = peer(module)
    theirs = getattr(module, name)
    with sslops.patch(package):
        assert getattr(module, name).__module__.startswith("sslops.compat")
    assert getattr(module, name) is theirs


@pytest.mark.parametrize("page", _migration.PAGES, ids=lambda page: page.stem)
def test_before_and_after_of_the_migrations_agree(page):
    peer(re.search(r"from ([\w.]+) import", page.read_text()).group(1))
    if page.stem == "solo_learn":
        pytest.skip("solo-learn of the index has other arguments than that of its repository")
    torch.testing.assert_close(_migration.loss_of(page, 0), _migration.loss_of(page, 1))


def test_patch_lightly_trains():
    package = peer("lightly.loss")
    out0, out1 = torch.randn(2, B, D)
    expected = package.NTXentLoss()(out0, out1)
    theirs = package.NTXentLoss
    with sslops.patch("lightly"):
        loss = package.NTXentLoss()
    assert isinstance(loss, theirs)
    assert type(loss) is not theirs
    torch.testing.assert_close(loss(out0, out1), expected)


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_patched_losses_go_where_the_originals_go(name):
    """Into the package's own wrappers, which ask what class an object has."""
    package = peer("pytorch_metric_learning.losses")
    wrapper = peer("pytorch_metric_learning.utils.distributed").DistributedLossWrapper
    z, labels = torch.randn(B, D), torch.arange(B) % 5
    expected = getattr(package, name)(collect_stats=True)(z, labels)
    with sslops.patch("pytorch_metric_learning"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process
        loss = getattr(package, name)(collect_stats=True)
        torch.testing.assert_close(loss(z, labels), expected)
        torch.testing.assert_close(wrapper(loss)(z, labels), expected)
        both = package.MultipleLosses([loss, package.TripletMarginLoss()], weights=[1, 0])
        torch.testing.assert_close(both(z, labels), expected)
        memory = wrapper(package.CrossBatchMemory(loss, D, 40))
        torch.testing.assert_close(memory.loss(z, labels), expected)
    assert loss.distance.is_inverted
    assert loss._record_these == getattr(package, name)(collect_stats=True)._record_these


def test_wrappers_of_the_package_run_a_patched_loss_that_was_changed():
    package = peer("pytorch_metric_learning.losses")
    z, labels = torch.randn(2, B, D), torch.arange(B) % 5
    entry = {"losses": torch.ones(3), "indices": torch.arange(3), "reduction_type": "element"}
    with sslops.patch("pytorch_metric_learning"):
        loss = package.NTXentLoss()
        loss.compute_loss = lambda *args: {"loss": entry}
        assert package.SelfSupervisedLoss(loss)(*z).item() == 1
        assert package.CrossBatchMemory(loss, D, 40)(z[0], labels).item() == 1


def test_patched_losses_are_compiled():
    package, z = peer("lightly.loss"), torch.randn(2, B, D, requires_grad=True)
    with sslops.patch("lightly"):
        loss = package.NTXentLoss()
    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(compiled(*z), loss(*z))


def test_a_subclass_of_a_patched_class_keeps_its_own_steps():
    package = peer("open_clip.loss")
    rows = (unit(B, D), unit(B, D), torch.tensor(9.3))
    with sslops.patch("open_clip"):

        class Colder(package.ClipLoss):
            def get_logits(self, *args, **more):
                return [each / 2 for each in super().get_logits(*args, **more)]

        halved = package.ClipLoss()(rows[0], rows[1], rows[2] / 2)
        torch.testing.assert_close(Colder()(*rows), halved)
