"""Losses as modules: thin, with no state but their hyper-parameters."""

from sslops.nn.info_nce import CPCLoss, InfoNCELoss, SupConLoss
from sslops.nn.nt_xent import NTXentLoss
from sslops.nn.pairs import ClipLoss, SigmoidLoss

__all__ = ["CPCLoss", "ClipLoss", "InfoNCELoss", "NTXentLoss", "SigmoidLoss", "SupConLoss"]
