"""depthup makes a trained language model deeper and carries it to an aligned, evaluated, documented model."""

__version__ = "0.1.0"
