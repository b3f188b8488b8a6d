"""Tones made here: sound to try a method on, with exact labels and nothing to fetch."""

import math

import torch
from torch import Tensor

from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.waves import Waves

__all__ = ["load_tones"]

RATE = 4000
TAKES, TEST_TAKES = 20, 5
NOTES = ("C", "D", "E", "F", "G", "A")
SEMITONES = (0, 2, 4, 5, 7, 9)
# Strengths of the first four partials.
TIMBRES = {
    "flute": (1.0, 0.2, 0.05, 0.0),
    "reed": (1.0, 0.1, 0.8, 0.1),
    "string": (0.6, 1.0, 0.6, 0.4),
    "bell": (0.4, 0.1, 0.3, 1.0),
}
ARPEGGIO = (0, 4, 7)  # semitones above the note, one after another


def load_tones() -> Dataset:
    """480 broken chords of about half a second: the label is the note they start from.

    The factor "speaker" is the timbre. Loudness, tuning, tempo and phases are drawn, and there is
    noise; the same ones for every user.
    """
    generator = torch.Generator().manual_seed(0)
    recordings, labels, speakers, takes = [], [], [], []
    for speaker, partials in enumerate(TIMBRES.values()):
        for note, semitone in enumerate(SEMITONES):
            for take in range(TAKES):
                recordings.append(_recording(semitone, partials, generator))
                labels.append(note)
                speakers.append(speaker)
                takes.append(take)
    waves = Waves.of(recordings, RATE)
    notes, timbres = torch.tensor(labels), torch.tensor(speakers)
    test = torch.tensor(takes) < TEST_TAKES

    def split(chosen: Tensor) -> Split:
        index = torch.nonzero(chosen).flatten()
        return Split(waves[index], notes[index], {"speaker": timbres[index]})

    return Dataset(
        name="tones",
        train=split(~test),
        test=split(test),
        classes=NOTES,
        licence="Apache-2.0",
        source="made by sslops",
        factors={"speaker": tuple(TIMBRES)},
    )


def _recording(semitone: int, partials: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """[length] int16."""
    draw = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    seconds = 0.13 + 0.06 * draw[0]  # of each tone
    detune, loud = 2 ** ((draw[1] - 0.5) / 12), 0.1 + 0.3 * draw[2]
    time = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    tones = []
    for step in ARPEGGIO:
        pitch = 262 * detune * 2 ** ((semitone + step) / 12)
        waves = [
            strength * torch.sin(2 * math.pi * (k + 1) * pitch * time + 2 * math.pi * draw[3 + k])
            for k, strength in enumerate(partials)
            if (k + 1) * pitch < RATE / 2
        ]
        fade = (10 * time / seconds).clamp(max=1) * (1 - time / seconds)
        tones.append(torch.stack(waves).sum(0) * fade)
    sound = torch.cat(tones)
    noise = torch.randn(len(sound), generator=generator, dtype=torch.float64)
    sound = loud * (sound / sound.abs().max() + 0.02 * noise)
    samples: Tensor = (sound.clamp(-1, 1) * 32767).round().to(torch.int16)
    return samples
