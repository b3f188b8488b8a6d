"""`sslops plan`: memory and time of a configuration before it is run."""

from sslops.training.experiments.plan.propose import Option, propose
from sslops.training.experiments.plan.simulate import Memory, simulate

__all__ = ["Memory", "Option", "propose", "simulate"]
