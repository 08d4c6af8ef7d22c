"""Randomness: every random number comes from the recipe's seed and the name of what it is for."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """A seed of its own for each purpose, so that adding one random step changes no other."""
    content = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(content.encode(errors="surrogateescape")).digest()[:4], "big")


def generator_for(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device``, seeded by :func:`seed_for`."""
    return torch.Generator(device).manual_seed(seed_for(seed, *purpose))


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global source of randomness starts from ``seed`` within, and is restored afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which formats the call stack for every kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
