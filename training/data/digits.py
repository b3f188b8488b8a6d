"""Handwritten digits, 8x8 grey: the embedded default, inside scikit-learn's wheel."""

import numpy as np
import torch

from sslops.training.data.dataset import Dataset, Split
from sslops.training.data.split import stratified, take

TEST_IMAGES = 500
SPLIT_SEED = 0  # scikit-learn ships no split; this one is fixed for every user


def load_digits() -> Dataset:
    """1,797 images with values 0..16 scaled to 0..255; 1,297 to train and 500 to test."""
    from sklearn import datasets  # takes a second to import, and only this set needs it

    bunch = datasets.load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    whole = Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(bunch.target).long())
    assert whole.labels is not None
    test = stratified(whole.labels, TEST_IMAGES, SPLIT_SEED)
    return Dataset(
        name="digits",
        train=take(whole, torch.nonzero(~test).flatten()),
        test=take(whole, torch.nonzero(test).flatten()),
        classes=tuple("0123456789"),
        licence="CC BY 4.0",
        source=(
            "scikit-learn's load_digits: test part of Optical Recognition of Handwritten Digits,"
            " E. Alpaydin and C. Kaynak 1998, UCI, doi:10.24432/C50P49"
        ),
    )
