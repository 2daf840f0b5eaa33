"""The README of an exported model: how to load it without farshore."""

from __future__ import annotations

from collections.abc import Mapping

_POOLING = {
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
    "last": "hidden[torch.arange(len(hidden)), (mask[..., 0] * torch.arange(mask.shape[1])).argmax(1).long()]",
    "pooler": "out.pooler_output",
}

_TEXT = """# A model trained with split fine-tuning

The backbone is a plain transformers model; the codec of the split is merged into it, so that it computes what edges and
cloud computed together (without the rounding of the codes on the wire). `head.safetensors` is the classifier on top.

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
head = load_file("head.safetensors")
inputs = tokenizer(["a sentence"], padding=True, return_tensors="pt")
with torch.no_grad():
    out = model(**inputs)
    hidden, mask = out.last_hidden_state, inputs["attention_mask"].unsqueeze(-1).float()
    logits = ({pooling}) @ head["weight"].T + head["bias"]
```

Classes: {classes}.
"""


def model_card(pooling: str, labels: Mapping[int, str]) -> str:
    """Return the text for a head with this pooling, and the classes by index."""
    classes = ", ".join(f"{index} {label}" for index, label in labels.items())
    return _TEXT.format(pooling=_POOLING[pooling], classes=classes)
