"""The methods: one file each, a final class around pure arithmetic on the Gram matrix."""

from gradsurgery.methods.aligned_mtl import AlignedMTL
from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.cagrad import CAGrad
from gradsurgery.methods.config import ConFIG
from gradsurgery.methods.constant import Constant
from gradsurgery.methods.dual_proj import DualProj
from gradsurgery.methods.fairgrad import FairGrad
from gradsurgery.methods.gradvac import GradVac, gradvac
from gradsurgery.methods.imtl_g import IMTLG
from gradsurgery.methods.mgda import MGDA
from gradsurgery.methods.nash_mtl import NashMTL
from gradsurgery.methods.pcgrad import PCGrad, pcgrad
from gradsurgery.methods.primary import Primary
from gradsurgery.methods.random_weights import RandomWeights
from gradsurgery.methods.sum import Sum
from gradsurgery.methods.upgrad import UPGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "Constant",
    "DualProj",
    "FairGrad",
    "GradVac",
    "Method",
    "NashMTL",
    "PCGrad",
    "Primary",
    "RandomWeights",
    "State",
    "Sum",
    "UPGrad",
    "Verdict",
    "gradvac",
    "pcgrad",
]
