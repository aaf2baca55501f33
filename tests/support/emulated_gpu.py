"""A CPU that does what the trainer does on a GPU, and this file is such a trainer.

    python tests/support/emulated_gpu.py --device cpu ...          # as train_gpt.py

The stream is in bf16, and blocks and losses are compiled, up to the code generator: a GPU has
another one, and the one for CPUs takes minutes. Memory of a GPU is not emulated.
"""

import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train_gpt


def emulate() -> None:
    """From now on, in this process."""
    train_gpt.World.dtype = property(lambda self: torch.bfloat16)
    torch.compile = partial(torch.compile, backend="aot_eager")
    as_on_a_cpu = train_gpt.Trainer.__init__

    def begin(self, *args) -> None:
        as_on_a_cpu(self, *args)
        self.model.compile()

    def warm_up(self) -> None:
        self.gradients(0, float(bool(self.heads.layers)))
        self.forget_gradients()

    train_gpt.Trainer.__init__, train_gpt.Trainer.warm_up = begin, warm_up


if __name__ == "__main__":
    emulate()
    sys.exit(train_gpt.main())
