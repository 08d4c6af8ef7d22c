"""The audit: a defended model under every threat model."""
