"""What the modules with a temperature share."""

import torch
from torch import Tensor, nn


class WithTemperature(nn.Module):
    """Holds tau as a number, or as `log_temperature` if it is learnt, so that it stays positive."""

    def __init__(self, temperature: float, learn_temperature: bool) -> None:
        super().__init__()
        if not temperature > 0:
            name = type(self).__name__
            raise ValueError(f"{name}: temperature must be positive, got {temperature}")
        start = torch.tensor(float(temperature)).log()
        self.log_temperature = nn.Parameter(start) if learn_temperature else None
        self._temperature = float(temperature)

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
