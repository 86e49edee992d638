"""GRIN's parallelism made runnable: data, tensor-parallel experts and a pipeline, and no expert parallelism.

Expert parallelism sends tokens to their experts and, to bound what one device receives, drops some. Here each process
holds a slice of every expert, so that nothing is sent by expert and nothing dropped (arXiv:2409.12136, section 2.2).
Under `torchrun`, on CPUs (gloo) or GPUs (nccl):

    torchrun --nproc-per-node 4 -m lib.grin.parallel --data 2 --tensor 2

or from a program of your own, with the processes joined: `ParallelGrin(model, Layout(data=2, tensor=2))`.
"""

from lib.grin.parallel.draws import WindowDraws
from lib.grin.parallel.layout import Layout
from lib.grin.parallel.step import ParallelGrin, StepLosses
from lib.grin.parallel.tensor import ShardedExperts

__all__ = ["Layout", "ParallelGrin", "ShardedExperts", "StepLosses", "WindowDraws"]
