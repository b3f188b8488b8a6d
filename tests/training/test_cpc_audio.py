"""CPC on sound: each point of the paper that toy versions miss, and that it learns."""

import io
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslops.training import load_encoder, train
from sslops.training.config import make_config
from sslops.training.data import Waves, load
from sslops.training.distributed.process import World
from sslops.training.engine.collapse import Diagnosis
from sslops.training.engine.setup import shape_of
from sslops.training.evaluate import extract
from sslops.training.evaluate.baselines import plain_features, supervised_arms
from sslops.training.evaluate.factors import factor_table, measure_factors, measure_frames
from sslops.training.evaluate.linear import linear_probe
from sslops.training.evaluate.run import forget_seen
from sslops.training.experiments.ablate import ablate, parse_value
from sslops.training.loggers.console import Console
from sslops.training.methods.base import DataShape
from sslops.training.methods.cpc_audio import CPCAudio, CPCAudioConfig
from sslops.training.models import AudioEncoder, LogMel
from sslops.training.models.audio import ChannelNorm, strides_for
from sslops.training.recipes import RECIPES
from sslops.training.report.report import write_report

pytestmark = pytest.mark.slow

SHAPE = DataShape(1, 0, 6, 4000)
TINY = {"width": 8, "context": 8, "window": 0.3, "batch": 8, "knn_every": 0, "threads": 1}
QUIET = Console(io.StringIO())


def method(**changes):
    torch.manual_seed(0)
    return CPCAudio(CPCAudioConfig(**{**TINY, **changes}), SHAPE)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# the encoder


def test_the_papers_strides_at_16_khz_and_10_ms_at_any_rate():
    assert strides_for(16_000) == (5, 4, 2, 2, 2)
    assert strides_for(8_000) == (5, 2, 2, 2, 2)
    for rate in (4000, 8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        assert math.prod(strides_for(rate)) / rate == pytest.approx(0.01, rel=0.1)
    encoder = AudioEncoder(16_000, width=4, context=3)
    convs = [layer for layer in encoder.layers if isinstance(layer, nn.Conv1d)]
    assert [conv.kernel_size[0] for conv in convs] == [10, 8, 4, 4, 4]
    assert encoder.latents(torch.randn(1, 20_480))[0].shape == (1, 128, 4)
    with pytest.raises(ValueError, match=r"rate must be in \[1000, 96000\] Hz, got 500"):
        strides_for(500)


def test_channel_norm_keeps_frames_apart():
    norm = ChannelNorm(6)
    x = torch.randn(2, 6, 5)
    y = x.clone()
    y[:, :, 3] = torch.randn(2, 6)
    same = torch.tensor([True, True, True, False, True])
    assert torch.equal(norm(x)[:, :, same], norm(y)[:, :, same])
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(2, 5))
    assert not any(
        isinstance(m, nn.modules.batchnorm._NormBase) for m in AudioEncoder(8000).modules()
    )


def test_contexts_know_nothing_of_what_comes():
    encoder = AudioEncoder(8000, width=8, context=6).double()
    x = torch.randn(1, 4000, dtype=torch.float64)
    x /= x.square().mean().sqrt()
    y = x.clone()
    y[:, 2400:] = y[:, 2400:].flip(1)  # the same level
    (z, c), (z2, c2) = encoder.latents(x), encoder.latents(y)
    edge = 2400 // 80 - 4  # frames that overlap with the change
    torch.testing.assert_close(z[:, :edge], z2[:, :edge], rtol=0, atol=1e-12)
    torch.testing.assert_close(c[:, :edge], c2[:, :edge], rtol=0, atol=1e-12)
    assert not torch.allclose(c[:, 31:], c2[:, 31:])


def test_he_start_keeps_the_signal():
    """With torch's own start its variance falls by a third or more in every layer."""
    torch.manual_seed(0)
    encoder = AudioEncoder(16_000, width=64, context=8)
    x = torch.randn(4, 1, 8000)
    for layer in encoder.layers:
        x = layer(x)
        if isinstance(layer, nn.Conv1d):
            assert layer.bias.abs().max() == 0
            assert 0.5 < x.std() < 3


def test_silence_behind_a_recording_changes_nothing():
    torch.manual_seed(0)
    for encoder in (AudioEncoder(8000, width=8, context=6), LogMel(8000)):
        short, long = torch.randn(800), torch.randn(2400)
        both = torch.stack([F.pad(short, (0, 1600)), long])
        pooled = encoder(both, torch.tensor([800, 2400]))
        assert pooled.shape == (2, encoder.dim)
        alone = encoder(long[None], torch.tensor([2400]))
        torch.testing.assert_close(pooled[1:], alone, rtol=1e-4, atol=1e-4)
        loud = encoder(10 * both, torch.tensor([800, 2400]))
        torch.testing.assert_close(loud, pooled, rtol=1e-3, atol=1e-3)  # nor does the level
    encoder = AudioEncoder(8000, width=8, context=6)
    alone = encoder.frames(short[None])[:, :9]
    torch.testing.assert_close(encoder.frames(both, torch.tensor([800, 2400]))[:1, :9], alone)


def test_extract_keeps_the_order_of_recordings():
    recordings = [torch.randint(-9999, 9999, (n,)).short() for n in (900, 300, 1500, 300, 700)]
    encoder = AudioEncoder(8000, width=8, context=6)
    together = extract(encoder, Waves.of(recordings, 8000), batch=2)
    alone = torch.cat([extract(encoder, Waves.of([each], 8000)) for each in recordings])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_log_mel_finds_a_tone():
    time = torch.arange(8000) / 8000
    tones = torch.stack([torch.sin(2 * math.pi * hz * time) for hz in (300, 1000, 3000)])
    frames = LogMel(8000).frames(tones)
    assert frames.shape == (3, 101, 40)
    loudest = frames[:, 50].argmax(1).tolist()
    mel = [2595 * math.log10(1 + hz / 700) for hz in (300, 1000, 3000)]
    top = 2595 * math.log10(1 + 4000 / 700)
    assert loudest == [pytest.approx(41 * m / top - 1, abs=1) for m in mel]


# the objective


@pytest.mark.parametrize("negatives", ["all", "sequence", "other"])
def test_loss_is_the_papers(negatives):
    """Against a loop over steps, windows and times."""
    cpc = method(pred_steps=3, negatives=negatives)
    views = torch.randn(1, 3, 1200)
    predictions, z = cpc.embed(views)
    B, T, D = z.shape
    losses = []
    for k in range(1, 4):
        W = cpc.predictor.weight[(k - 1) * D : k * D]  # a matrix for each step
        c = cpc.encoder.latents(views[0])[1]
        total = []
        for b in range(B):
            for t in range(T - k):
                own = [(b, s) for s in range(T) if s != t + k]
                rest = [(a, s) for a in range(B) for s in range(T) if a != b]
                against = {"all": own + rest, "sequence": own, "other": rest}[negatives]
                candidates = torch.stack([z[b, t + k], *(z[place] for place in against)])
                scores = candidates @ (W @ c[b, t]) / D**0.5
                total.append(-scores.log_softmax(0)[0])
        losses.append(torch.stack(total).mean())
    out = cpc.contrast((predictions, z))
    torch.testing.assert_close(out["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_chance_is_the_logarithm_of_the_candidates():
    T = 30
    assert method(negatives="sequence").chance == pytest.approx(math.log(T))
    assert method(negatives="all").chance == pytest.approx(math.log(8 * T))
    assert method(negatives="other").chance == pytest.approx(math.log(7 * T + 1))
    assert method(negatives=20).chance == pytest.approx(math.log(21))
    cpc = method(negatives="sequence")
    nn.init.zeros_(cpc.predictor.weight)
    loss = cpc.step(torch.randn(1, 4, 1200))["loss"]
    assert loss.item() == pytest.approx(cpc.chance, rel=1e-5)


def test_gradients_reach_encoder_through_targets_and_contexts():
    cpc = method()
    predictions, z = cpc.embed(torch.randn(1, 4, 1200))
    assert predictions.shape == (4, 12, 30, 8)  # first the windows, so that parts can be joined
    assert z.requires_grad
    cpc.contrast((predictions, z))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cpc.parameters())


def test_a_run_that_stalls_at_chance_is_told():
    cpc = method()
    diagnosis = Diagnosis(1000, 50, cpc.hints)
    record = {"step": 200, "loss": 0.99 * cpc.chance, "chance": cpc.chance}
    (warning,) = diagnosis(record)
    assert "nothing is learnt. Check the learning rate (--lr), whether a window" in warning
    assert diagnosis({**record, "step": 210}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pred_steps": 30}, "pred_steps must be below the 30 frames of a window of 0.3 s, got 30"),
        ({"window": 0.0}, "window must be positive, got 0.0"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


# a whole run, and what it learns


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Encoders trained on tones: negatives from everywhere, and from the same sequence."""
    out = tmp_path_factory.mktemp("tones")
    size = {"width": 24, "context": 24, "steps": 120, "batch": 24, "knn_every": 0}
    return {
        negatives: train(
            "cpc-audio", data="tones", out=out / negatives, console=QUIET, evaluate=False,
            negatives=negatives, **size,
        )
        for negatives in ("all", "sequence")
    }  # fmt: skip


def test_the_negatives_decide_what_is_learned(learned):
    tones = load("tones")
    note, timbre = {}, {}
    for negatives, result in learned.items():
        record = json.loads((result.dir / "metrics.jsonl").read_text().splitlines()[-1])
        assert record["loss"] < 0.92 * record["chance"]
        x, x_test = (extract(result.encoder, part.images) for part in (tones.train, tones.test))
        labels = tones.train.labels, tones.test.labels
        note[negatives] = linear_probe(x, labels[0], x_test, labels[1], classes=6, seed=0).accuracy
        found = measure_factors(tones, tones.train, tones.test, x, x_test, seed=0)
        timbre[negatives] = found["speaker.few1"]
    assert note["sequence"] > 0.9  # six notes
    assert note["sequence"] > note["all"] + 0.1
    assert timbre["all"] > timbre["sequence"] + 0.05


def test_charts_of_what_is_predicted(learned):
    folder = learned["sequence"].dir
    charts = json.loads((folder / "figures.json").read_text())
    assert {"prediction-by-step", "accuracy-by-step", "loss-by-step"} == charts.keys()
    true, rest = charts["prediction-by-step"]["series"].values()
    assert [k for k, _ in true] == list(range(1, 13))
    assert all(a > b for (_, a), (_, b) in zip(true, rest, strict=True))
    page = write_report(folder).read_text()
    assert "Predicted against true" in page
    assert "Nearest neighbours" not in page


def test_exported_encoder_takes_waveforms(learned):
    encoder = load_encoder(learned["all"].dir)
    x = torch.randn(2, 3000)
    torch.testing.assert_close(encoder(x), learned["all"].encoder(x))
    assert encoder(x).shape == (2, encoder.dim)
    assert encoder.frames(x).shape == (2, 75, 24)
    about = json.loads((learned["all"].dir / "encoder.json").read_text())
    assert (about["rate"], about["options"]) == (4000, {"width": 24, "context": 24})


def test_unseen_speakers_and_frames_are_probed():
    tones = load("tones")
    mel = LogMel(tones.rate)
    x, x_test = (extract(mel, part.images) for part in (tones.train, tones.test))
    found = measure_factors(tones, tones.train, tones.test, x, x_test, seed=0)
    assert found["speaker.linear"] == 1.0
    assert found["speaker.few1"] < 0.7
    unseen = [found[f"unseen.{name}"] for name in tones.factors["speaker"]]
    assert found["unseen.mean"] == pytest.approx(sum(unseen) / 4)
    # a feature that only knows note and timbre together says nothing of a new timbre's notes
    codes = [part.labels * 4 + part.factors["speaker"] for part in (tones.train, tones.test)]
    one_hot = [F.one_hot(code, 24).float() for code in codes]
    blind = measure_factors(tones, tones.train, tones.test, *one_hot, seed=0)
    assert blind["speaker.linear"] == 1.0
    assert blind["unseen.mean"] == pytest.approx(1 / 6)
    frames = measure_frames(mel, tones, tones.train, tones.test, seed=0)
    assert frames.keys() == {"frames.label", "frames.speaker"}
    assert all(0.3 < value <= 1 for value in frames.values())


def test_controls(tmp_path):
    tones = load("tones")
    assert isinstance(plain_features(tones)["log-mel"], LogMel)
    assert plain_features(load("digits")) == {"pixels": None}
    fields = {**TINY, "data": "tones", "supervised_epochs": 1, "held_out": "speaker=bell"}
    config = CPCAudioConfig(**fields)
    world = World(0, 1, torch.device("cpu"))
    arms = supervised_arms(tmp_path, config, tones, tones.train, shape_of(tones), world, QUIET)
    assert arms.keys() == {"supervised", "supervised-speaker", "supervised-unseen"}
    results = {name: {"dim": 1, "unseen.bell": 0.5, "unseen.flute": 0.6} for name in arms}
    forget_seen(results, config)
    assert results["supervised"] == {"dim": 1}
    assert results["supervised-unseen"] == {"dim": 1, "unseen.bell": 0.5}
    assert "unseen bell" in factor_table(results)
    wrong = CPCAudioConfig(**{**fields, "held_out": "speaker=drum"})
    (tmp_path / "checkpoint" / "supervised-unseen.safetensors").unlink()
    with pytest.raises(ValueError, match=r"held_out must be one of speaker=flute, .*=drum"):
        supervised_arms(tmp_path, wrong, tones, tones.train, shape_of(tones), world, QUIET)


def test_ablation_of_the_steps_is_one_table(tmp_path):
    config = CPCAudioConfig(
        **{**TINY, "data": "tones", "steps": 2, "supervised_epochs": 1, "eval_train": 96}
    )
    stream = io.StringIO()
    content = ablate("cpc-audio", "pred_steps", [2, 4], config, tmp_path, 1, Console(stream))
    arms = ["pred_steps=2", "pred_steps=4", "random-init", "log-mel", "supervised"]
    assert [name for name in content["summary"] if name in arms] == arms
    assert content["summary"]["pred_steps=2"]["loss"]["mean"] > 0
    assert json.loads((tmp_path / "ablation.json").read_text())["field"] == "pred_steps"
    before = (tmp_path / "pred_steps=2" / "seed0" / "encoder.safetensors").stat().st_mtime_ns
    ablate("cpc-audio", "pred_steps", [2, 4], config, tmp_path, 1, QUIET)  # nothing to repeat
    after = (tmp_path / "pred_steps=2" / "seed0" / "encoder.safetensors").stat().st_mtime_ns
    assert before == after
    assert "speaker, 1 label" in stream.getvalue()
    with pytest.raises(TypeError, match="no such option, got 'pred_step'; did you mean 'pred_ste"):
        ablate("cpc-audio", "pred_step", [2], config, tmp_path, 1, QUIET)
    values = ["4", "0.5", "all", "true", "null"]
    assert [parse_value(text) for text in values] == [4, 0.5, "all", True, None]


def test_recipes():
    config = make_config(CPCAudioConfig, "cpc-audio", {"data": "fsdd"})
    assert config.held_out == "speaker=theo"
    paper = RECIPES["librispeech/cpc-audio"].fields
    assert paper["window"] * 16_000 == 20_480
    chosen = make_config(CPCAudioConfig, "cpc-audio", {"recipe": "librispeech"})
    assert (chosen.width, chosen.context, chosen.pred_steps, chosen.lr) == (512, 256, 12, 2e-4)
