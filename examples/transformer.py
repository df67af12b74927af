"""A network of the transformers library, whose batches are dicts: the feed-forward layers grow.

python examples/transformer.py
"""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from growpipe import analyse, grow

torch.manual_seed(0)
config = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_labels=2,
)
tokens = torch.randint(2, 40, (256, 12))
labels = (tokens[:, 0] < 20).long()
mask = torch.ones_like(tokens)
parts = [slice(i, i + 32) for i in range(0, 256, 32)]
batches = [{"input_ids": tokens[p], "attention_mask": mask[p], "labels": labels[p]} for p in parts]


class Positional(nn.Module):
    """What growpipe calls: tensors in, one tensor out."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).logits


model = Positional(BertForSequenceClassification(config))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
pairs = [((b["input_ids"], b["attention_mask"]), b["labels"]) for b in batches]

model.train()  # analyse gives every module its mode back
for epoch in range(1, 7):
    for batch in batches:
        optimizer.zero_grad()
        (loss := model.bert(**batch).loss).backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
    if epoch == 2:
        # Attention, embeddings and the pooler keep their sizes: the library derives them from each other.
        frozen = ("*attention*", "*pooler*", "*embeddings*")
        plan = analyse(model, nn.functional.cross_entropy, pairs, pairs[0][0], growth=0.5, freeze=frozen)
        model = grow(model, plan, optimizer=optimizer)
        print(plan)
