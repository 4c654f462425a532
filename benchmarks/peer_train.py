"""A training script as one writes it by hand with transformers: the peer of the sweep benchmark.

``python benchmarks/peer_train.py --tokens FILE --activation silu --seed 0 --steps 260``. FILE is a ``.npz`` with `train` and
`val`, token ids both.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

began = time.time()
parser = argparse.ArgumentParser()
parser.add_argument("--tokens", type=Path, required=True)
parser.add_argument("--model", choices=["llama", "gpt2"], default="llama")
parser.add_argument("--activation", default="silu")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=260)
parser.add_argument("--batch", type=int, default=12)
parser.add_argument("--context", type=int, default=64)
parser.add_argument("--vocab", type=int, required=True)
parser.add_argument("--d-model", type=int, default=128)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--heads", type=int, default=4)
parser.add_argument("--d-ff", type=int, default=344)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out", type=Path, required=True)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(args.seed)
text = np.load(args.tokens)
train, val = (torch.from_numpy(text[name].astype(np.int64)) for name in ("train", "val"))

if args.model == "llama":
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab,
            hidden_size=args.d_model,
            intermediate_size=args.d_ff,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            max_position_embeddings=args.context,
            hidden_act=args.activation,
            use_cache=False,
        )
    )
else:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=args.vocab,
            n_embd=args.d_model,
            n_inner=args.d_ff,
            n_layer=args.layers,
            n_head=args.heads,
            n_positions=args.context,
            activation_function=args.activation,
            use_cache=False,
        )
    )
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def get_batch():
    starts = torch.randint(len(train) - args.context - 1, (args.batch,))
    rows = torch.stack([train[i : i + args.context + 1] for i in starts.tolist()])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.no_grad()
def evaluate():
    model.eval()
    rows = val[: (len(val) - 1) // args.context * args.context + 1]
    x, y = rows[:-1].view(-1, args.context), rows[1:].view(-1, args.context)
    losses = [
        F.cross_entropy(model(input_ids=a).logits.flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(args.batch), y.split(args.batch), strict=True)
    ]
    model.train()
    return sum(losses) / y.numel()


log = [{"step": 0, "val_loss": evaluate()}]
started = time.time()
for step in range(args.steps):
    progress = min(1.0, (step + 1) / 13) * 0.5 * (1.1 + 0.9 * math.cos(math.pi * step / args.steps))
    for group in optimizer.param_groups:
        group["lr"] = args.lr * progress
    x, y = get_batch()
    loss = F.cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if (step + 1) % 10 == 0:
        log.append({"step": step + 1, "train_loss": loss.item()})
trained = time.time() - started
args.out.mkdir(parents=True, exist_ok=True)
row = {"val_loss": evaluate(), "train_seconds": trained, "seconds": time.time() - began, "log": log}
torch.save(model.state_dict(), args.out / "model.pt")
(args.out / "result.json").write_text(json.dumps(row))
