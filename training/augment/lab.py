r"""sRGB to CIE 1976 L*a*b* and back, for the white point D65.

$$ L = 116 f(Y) - 16, \quad a = 500 (f(X) - f(Y)), \quad b = 200 (f(Y) - f(Z)) $$

with X, Y, Z in shares of white's and f the cube root, continued by its tangent below (6/29)^3.

Source:
    sRGB: IEC 61966-2-1:1999, with the matrix that B. Lindbloom computes from its primaries and
    D65. L*a*b*: CIE 15:2004, section 8.2.1.
"""

import torch
from torch import Tensor

__all__ = ["in_gamut", "lab_to_rgb", "lightness", "rgb_to_lab"]

XYZ_OF_RGB = torch.tensor(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=torch.float64,
)
# Rows over their sums: white is (1, 1, 1), so that greys have no colour to the last bit but one.
TO_XYZ: list[list[float]] = (XYZ_OF_RGB / XYZ_OF_RGB.sum(1, keepdim=True)).tolist()
FROM_XYZ: list[list[float]] = torch.tensor(TO_XYZ, dtype=torch.float64).inverse().tolist()
LINEAR_BELOW, SLOPE = 0.04045, 12.92  # of sRGB's curve
TANGENT_BELOW = 6 / 29  # of f, in its values


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """L in [0, 100], a and b of sRGB images.

    Args:
        rgb: [..., 3, H, W] in [0, 1], any floating dtype.

    Returns:
        [..., 3, H, W], the same dtype. Gradients are finite everywhere, at black too.

    Raises:
        TypeError: `rgb` is not floating.
        ValueError: it has not three channels.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
        >>> [round(value, 1) for value in rgb_to_lab(red).flatten().tolist()]
        [53.2, 80.1, 67.2]
    """
    wide = _checked("rgb_to_lab", rgb)
    x, y, z = (_root(each) for each in _mix(_linear(wide), TO_XYZ))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3).to(rgb.dtype)


def lightness(rgb: Tensor) -> Tensor:
    """L alone: [..., 3, H, W] in [0, 1] -> [..., 1, H, W] in [0, 100]."""
    (y,) = _mix(_linear(_checked("lightness", rgb)), TO_XYZ[1:2])
    return (116 * _root(y) - 16).unsqueeze(-3).to(rgb.dtype)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB lacks come out beyond [0, 1].

    Args:
        lab: [..., 3, H, W], any floating dtype.

    Raises:
        TypeError: `lab` is not floating.
        ValueError: it has not three channels.
    """
    L, a, b = _checked("lab_to_rgb", lab).unbind(-3)
    y = (L + 16) / 116
    xyz = torch.stack([_cube(y + a / 500), _cube(y), _cube(y - b / 200)], -3)
    linear = torch.stack(_mix(xyz, FROM_XYZ), -3)
    bent = 1.055 * linear.clamp(min=LINEAR_BELOW / SLOPE) ** (1 / 2.4) - 0.055
    return torch.where(linear <= LINEAR_BELOW / SLOPE, linear * SLOPE, bent).to(lab.dtype)


def in_gamut(lab: Tensor, slack: float = 1e-4) -> Tensor:
    """Whether sRGB has the colours `lab` [..., 3, H, W], up to `slack` in RGB: [..., H, W] bool."""
    rgb = lab_to_rgb(lab)
    return ((rgb >= -slack) & (rgb <= 1 + slack)).all(-3)


# A power is taken of clamped values alone: the gradient of the branch not taken is finite then.


def _linear(rgb: Tensor) -> Tensor:
    bent = ((rgb.clamp(min=LINEAR_BELOW) + 0.055) / 1.055) ** 2.4
    return torch.where(rgb <= LINEAR_BELOW, rgb / SLOPE, bent)


def _root(t: Tensor) -> Tensor:
    """CIE's f."""
    d = TANGENT_BELOW
    return torch.where(t > d**3, t.clamp(min=d**3) ** (1 / 3), t / (3 * d * d) + 4 / 29)


def _cube(f: Tensor) -> Tensor:
    """The inverse of `_root`."""
    d = TANGENT_BELOW
    return torch.where(f > d, f**3, (f - 4 / 29) * (3 * d * d))


def _mix(x: Tensor, matrix: list[list[float]]) -> list[Tensor]:
    """Each row of the matrix times the channels; no matmul, which autocast would round."""
    first, second, third = x.unbind(-3)
    return [first * row[0] + second * row[1] + third * row[2] for row in matrix]


def _checked(name: str, x: Tensor) -> Tensor:
    """`x` in float32 at least: in half precision the differences of roots would be noise."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: colours must be floating, got {x.dtype}")
    if x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"{name}: colours must be [..., 3, H, W], got {tuple(x.shape)}")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
