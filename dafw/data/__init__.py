"""How samples reach a step."""

from dafw.data.batch import Batch, Sample, collate
from dafw.data.domain import ArrayImages, Domain
from dafw.data.joint import JointDataset
from dafw.data.sampler import Draw, JointBatchSampler, ShardSampler, Stream

__all__ = [
    "ArrayImages",
    "Batch",
    "Domain",
    "Draw",
    "JointBatchSampler",
    "JointDataset",
    "Sample",
    "ShardSampler",
    "Stream",
    "collate",
]
