"""Growth in a training loop of your own, with AdamW and a schedule of the learning rate.

python examples/own_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from growpipe import analyse, export_growth_form, grow, recalibrate
from growpipe.graph_ops import deploy_form, save_model

EPOCHS, GROW_AFTER = 10, (2, 4)

digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
targets = torch.from_numpy(digits.target)
train = [(images[i : i + 64], targets[i : i + 64]) for i in range(0, 1280, 64)]
test = (images[1280:], targets[1280:])

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(),
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10),
)  # fmt: skip
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * len(train))

for epoch in range(1, EPOCHS + 1):
    model.train()
    for batch, classes in train:
        optimizer.zero_grad()
        loss_fn(model(batch), classes).backward()
        optimizer.step()
        schedule.step()
    if epoch in GROW_AFTER:
        plan = analyse(model, loss_fn, train[:6], (images[:2],), growth=0.5, scheme="m4", c=1.25)
        model = grow(
            model, plan, optimizer=optimizer
        )  # the optimizer keeps its state, the schedule its place
        print(f"epoch {epoch}: {plan}")

recalibrate(model, train)
model.eval()
with torch.no_grad():
    accuracy = (model(test[0]).argmax(1) == test[1]).float().mean()
print(f"test accuracy {accuracy:.1%}, {sum(p.numel() for p in model.parameters()):,} parameters")
save_model(deploy_form(export_growth_form(model, (images[:2],)).graph), "own_loop.onnx")
