"""What the modules with a temperature share."""

import math
from numbers import Real

import torch
from torch import Tensor, nn


def positive_number(owner: str, name: str, value: object, learn: str) -> float:
    """`value` as a float; a tensor would be frozen here without a word."""
    if not isinstance(value, Real):
        raise TypeError(
            f"{owner}: {name} must be a number, got {type(value).__name__}; {learn}=True makes it a"
            " parameter"
        )
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{owner}: {name} must be positive and finite, got {value}")
    return number


class WithTemperature(nn.Module):
    """Holds tau as a number, or as `log_temperature` if it is learnt, so that it stays positive."""

    def __init__(self, temperature: float, learn_temperature: bool) -> None:
        super().__init__()
        owner = type(self).__name__
        tau = positive_number(owner, "temperature", temperature, "learn_temperature")
        self.log_temperature = nn.Parameter(torch.tensor(tau).log()) if learn_temperature else None
        self._temperature = tau

    @property
    def temperature(self) -> float | Tensor:
        """The number, or exp(log_temperature) when it is learnt."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        learnt = ", learnt" if self.log_temperature is not None else ""
        text = f"temperature={float(torch.as_tensor(self.temperature).detach()):g}{learnt}"
        for name in ("mean", "negatives", "symmetric", "reduction"):
            if hasattr(self, name):
                text += f", {name}={getattr(self, name)!r}"
        return text
