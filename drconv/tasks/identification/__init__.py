"""Face identification: MS1M-V2, verification pairs, and rank-1 among a million distractors (the paper's Table 2)."""

from drconv.tasks.identification.task import Identification

__all__ = ["Identification"]
