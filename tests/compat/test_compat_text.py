"""sentence-transformers' ranking loss against a double loop, and its gradient cache."""

from itertools import chain

import pytest
import torch
from torch import nn

from sslops.compat._pieces import pieces
from sslops.compat.sentence_transformers import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
    cos_sim,
    dot_score,
    multiple_negatives_ranking_loss,
)
from tests.compat import _compat_plain as plain
from tests.compat._compat import assert_same_loss

Q2D, Q2Q, D2Q, D2D = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"
B, D = 6, 8


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("directions", "mode"),
    [
        ((Q2D,), "joint"),
        ((Q2D, Q2Q), "joint"),
        ((Q2D, D2Q), "joint"),
        ((Q2D, D2Q), "per_direction"),
        ((Q2D, D2Q, D2D), "joint"),
        ((Q2D, Q2Q, D2Q, D2D), "joint"),
    ],
)
def test_directions(directions, mode, normalize, columns):
    scale = 20.0 if normalize else 1.0
    assert_same_loss(
        lambda *z: multiple_negatives_ranking_loss(
            z, scale, normalize=normalize, directions=directions, partition_mode=mode
        ),
        lambda *z: plain.ranking(z, scale, normalize, directions, mode),
        torch.randn(columns, B, D),
        scale=20,
    )


class Encoder(nn.Module):
    """Embeds rows of numbers; dropout shows whether random numbers are drawn again."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layer, self.dropout, self.seen = nn.Linear(5, D), nn.Dropout(dropout), []

    def forward(self, features):
        self.seen.append(len(features["input_ids"]))
        features["sentence_embedding"] = self.dropout(self.layer(features["input_ids"]))
        return features


def features(columns=3, dtype=torch.float32):
    rows = torch.randn(columns, B, 5, dtype=dtype)
    return [{"input_ids": each, "prompt_length": 2} for each in rows]


@pytest.mark.parametrize("similarity", [cos_sim, dot_score])
def test_module_embeds_and_compares(similarity):
    model, columns = Encoder(), features()
    loss = MultipleNegativesRankingLoss(model, scale=2.0, similarity_fct=similarity)
    rows = [model.layer(each["input_ids"]) for each in columns]
    expected = plain.ranking(rows, 2.0, similarity is cos_sim, (Q2D,), "joint")
    torch.testing.assert_close(loss(columns, None), expected)
    a, b = torch.randn(3, D), torch.randn(4, D)
    torch.testing.assert_close(similarity(a, a).diagonal().sum() > 0, torch.tensor(True))
    assert similarity(a, b).shape == (3, 4)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_cached_gradient_is_that_of_one_pass(size):
    # In float64: how a processor orders the sums of one matrix product and of many is no matter.
    model, columns = Encoder().double(), features(dtype=torch.float64)
    MultipleNegativesRankingLoss(model)(columns, None).backward()
    expected, model.layer.weight.grad = model.layer.weight.grad, None
    model.seen.clear()
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=size)
    value = loss(columns, None)
    (3 * value).backward()
    assert max(model.seen) <= size
    torch.testing.assert_close(model.layer.weight.grad, 3 * expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(value, MultipleNegativesRankingLoss(model)(columns, None))


def test_cached_passes_draw_the_same_dropout():
    model, columns = Encoder(dropout=0.5), features(2)
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    outputs = []
    model.dropout.register_forward_hook(lambda _, __, out: outputs.append(out.detach()))
    value = loss(columns, None)
    drawn = torch.get_rng_state()
    value.backward()
    first, second = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    assert len(first) == 6
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), drawn)  # the backward draws nothing of its own


def test_cached_second_pass_has_the_autocast_of_the_first():
    model, columns = Encoder(), features(2)
    kinds = []
    model.layer.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        value = CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)(columns, None)
    value.backward()
    assert set(kinds) == {torch.bfloat16}
    assert len(kinds) == 8


def test_cached_without_gradient_runs_the_encoder_once():
    model, columns = Encoder(), features(2)
    with torch.no_grad():
        value = CachedMultipleNegativesRankingLoss(model)(columns, None)
    assert not value.requires_grad
    assert model.seen == [B, B]


def test_cached_leaves_a_frozen_encoder_alone():
    model, columns = Encoder().requires_grad_(False), features(2)
    CachedMultipleNegativesRankingLoss(model)(columns, None).backward()
    assert model.layer.weight.grad is None


def test_cached_loss_may_be_wrapped():
    """As MatryoshkaLoss does: the loss of shortened embeddings, back through the shortening."""
    model, columns = Encoder(), features(2)
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    assert loss.uses_gradient_cache
    inner = loss.calculate_loss

    def shortened(reps, *args, **options):
        short = [[each[:, :3] for each in column] for column in reps]
        if not torch.is_grad_enabled():
            return inner(short, *args, **options)
        leaves = [[each.detach().requires_grad_() for each in column] for column in short]
        value = inner(leaves, *args, **options)
        for there, here in zip(chain(*short), chain(*leaves), strict=True):
            there.backward(here.grad)
        return value

    loss.calculate_loss = shortened
    value = loss(columns, None)
    value.backward()
    rows = [model.layer(each["input_ids"])[:, :3] for each in columns]
    expected = multiple_negatives_ranking_loss(rows)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(expected, model.layer.weight)
    torch.testing.assert_close(model.layer.weight.grad, grad, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(loss(columns, None), expected)


def test_pieces_refuse_what_is_not_cut_by_texts():
    rows = torch.randn(4, 5)
    cut = pieces({"input_ids": rows, "one": torch.ones(1, 2), "n": 3}, 3)
    assert [len(piece["input_ids"]) for piece in cut] == [3, 1]
    assert cut[1]["n"] == 3
    for odd in ({"pixel_values": torch.randn(9, 5)}, {"position_ids": rows[:3]}):
        with pytest.raises(ValueError, match="one row for each text"):
            pieces({"input_ids": rows, **odd}, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"directions": ()}, "directions must have query_to_doc"),
        ({"directions": (D2Q,)}, "directions must have query_to_doc"),
        ({"directions": (Q2D, "up")}, "directions must be of"),
        ({"partition_mode": "both"}, "partition_mode must be"),
        ({"directions": (Q2D, Q2Q), "partition_mode": "per_direction"}, "per_direction goes with"),
        ({"hardness_mode": "foo"}, "hardness_mode must be None or of .*, got 'foo'"),
        ({"hardness_strength": -1.0}, "hardness_strength must not be negative, got -1.0"),
        ({"mini_batch_num_tokens": 0}, "mini_batch_num_tokens must be positive, got 0"),
        ({"mini_batch_size": 0}, "mini_batch_size must be positive"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        CachedMultipleNegativesRankingLoss(Encoder(), **options)


def test_refuses_shapes():
    with pytest.raises(ValueError, match="two or more tensors"):
        multiple_negatives_ranking_loss([torch.ones(2, 3)])


def test_config():
    config = CachedMultipleNegativesRankingLoss(Encoder(), mini_batch_size=7).get_config_dict()
    assert config["mini_batch_size"] == 7
    assert (config["scale"], config["similarity_fct"]) == (20.0, "cos_sim")
