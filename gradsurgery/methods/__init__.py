"""The methods: one file each, a final class around pure arithmetic on the Gram matrix."""

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.dynamic_weight_average import DynamicWeightAverage
from gradsurgery.methods.famo import FAMO
from gradsurgery.methods.geometric_mean import GeometricMean
from gradsurgery.methods.gradnorm import GradNorm
from gradsurgery.methods.gradvac import GradVac, gradvac
from gradsurgery.methods.pcgrad import PCGrad, pcgrad
from gradsurgery.methods.smooth_tchebycheff import SmoothTchebycheff
from gradsurgery.methods.sum import Sum
from gradsurgery.methods.uncertainty_weighting import UncertaintyWeighting
from gradsurgery.methods.weighting import LossWeighting

__all__ = [
    "FAMO",
    "DynamicWeightAverage",
    "GeometricMean",
    "GradNorm",
    "GradVac",
    "LossWeighting",
    "Method",
    "PCGrad",
    "SmoothTchebycheff",
    "State",
    "Sum",
    "UncertaintyWeighting",
    "Verdict",
    "gradvac",
    "pcgrad",
]
