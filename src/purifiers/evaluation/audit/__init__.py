"""The audit: a defended model under every threat model."""

from purifiers.evaluation.audit.run import audit

__all__ = ["audit"]
