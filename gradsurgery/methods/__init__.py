"""The methods: one file each, a final class around pure arithmetic on the Gram matrix."""

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.gradvac import GradVac, gradvac
from gradsurgery.methods.pcgrad import PCGrad, pcgrad
from gradsurgery.methods.sum import Sum

__all__ = ["GradVac", "Method", "PCGrad", "State", "Sum", "Verdict", "gradvac", "pcgrad"]
