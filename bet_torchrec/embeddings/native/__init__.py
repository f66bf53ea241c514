"""The kernels of our own for CPU: C++, compiled on first use, behind registered operators."""

from . import operators, pooling  # noqa: F401  # registers them
