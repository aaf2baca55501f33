"""A small GPT on bytes, in plain PyTorch: a trainer that knows nothing of the project around it.

    SEED=1 ITERS=300 DATA=../../data/stdlib python train_plain.py

It prints lines like nanoGPT's and writes nothing.
"""

import math
import os
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

seed = int(os.environ.get("SEED", 1337))
max_iters = int(os.environ.get("ITERS", 300))
data_dir = Path(os.environ.get("DATA", "data/stdlib"))

vocab_size = 256
block_size = 64
batch_size = 16
n_layer, n_head, n_embd = 2, 2, 64
learning_rate = 3e-3
warmup_iters = 20
weight_decay = 0.1
eval_interval = 100
eval_iters = 64
log_interval = 50

torch.manual_seed(seed)
torch.set_num_threads(1)


def bytes_of(split):
    """A shard of data/prepare.py: 1024 bytes of header, then 16 bits a byte of text."""
    (path,) = sorted(data_dir.glob(f"*_{split}_*.bin"))
    return torch.frombuffer(bytearray(path.read_bytes()[1024:]), dtype=torch.int16).long()


data = {split: bytes_of(split) for split in ("train", "val")}


def batch_of(split, generator):
    text = data[split]
    at = torch.randint(len(text) - block_size - 1, (batch_size,), generator=generator)
    rows = torch.stack([text[i : i + block_size + 1] for i in at.tolist()])
    return rows[:, :-1], rows[:, 1:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.out = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.up, self.down = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        B, T, C = x.shape
        heads = self.qkv(self.norm1(x)).view(B, T, 3, n_head, C // n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(vocab_size, n_embd)
        self.position = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(Block() for _ in range(n_layer)))
        self.norm, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size)

    def forward(self, idx, targets):
        x = self.token(idx) + self.position.weight[: idx.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lr_at(step):
    if step < warmup_iters:
        return learning_rate * (step + 1) / warmup_iters
    return learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * step / max_iters)))


@torch.no_grad()
def evaluate(model):
    """The same batches each time, whatever the seed."""
    model.eval()
    means = {}
    for split in data:
        generator = torch.Generator().manual_seed(0)
        losses = [model(*batch_of(split, generator)).item() for _ in range(eval_iters)]
        means[split] = sum(losses) / len(losses)
    model.train()
    return means


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=weight_decay)
order = torch.Generator().manual_seed(seed)
for step in range(max_iters + 1):
    if step % eval_interval == 0 or step == max_iters:
        loss = evaluate(model)
        print(
            f"step {step}: train loss {loss['train']:.4f}, val loss {loss['val']:.4f}", flush=True
        )
    if step == max_iters:
        break
    began = time.perf_counter()
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step)
    loss = model(*batch_of("train", order))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % log_interval == 0:
        took_ms = 1000 * (time.perf_counter() - began)
        print(f"iter {step}: loss {loss.item():.4f}, time {took_ms:.2f}ms, mfu 0.00%", flush=True)
