"""The methods: each one file, a pure function on the Gram matrix and a final class around it."""

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.gradvac import GradVac, gradvac
from gradsurgery.methods.pcgrad import PCGrad, pcgrad
from gradsurgery.methods.sum import Sum

__all__ = ["GradVac", "Method", "PCGrad", "State", "Sum", "Verdict", "gradvac", "pcgrad"]
