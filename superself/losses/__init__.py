"""Losses that several algorithms share, and that any training loop can use."""

from superself.losses.cosine import NegativeCosine
from superself.losses.dcl import DCL, DCLW
from superself.losses.hcl import HCL
from superself.losses.info_nce import InfoNCE
from superself.losses.memory_bank import MemoryBankLoss
from superself.losses.nt_xent import NTXent

__all__ = ["DCL", "DCLW", "HCL", "InfoNCE", "MemoryBankLoss", "NTXent", "NegativeCosine"]
