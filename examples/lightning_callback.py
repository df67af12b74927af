"""Growth in a Lightning trainer, by a callback (pip install lightning).

python examples/lightning_callback.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe import analyse, grow


class Grow(lightning.Callback):
    """Grow ``module.net`` after these epochs; Lightning's optimizer keeps its state."""

    def __init__(self, after, share=0.5):
        self.after, self.share = after, share

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 in self.after:
            batches = list(trainer.train_dataloader)
            plan = analyse(module.net, module.loss_fn, batches, (batches[0][0][:2],), growth=self.share)
            (optimizer,) = trainer.optimizers
            module.net = grow(module.net, plan, optimizer=optimizer)
            print(plan)


class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        self.loss_fn = nn.MSELoss()

    def training_step(self, batch, _):
        return self.loss_fn(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


torch.manual_seed(0)
inputs = torch.rand(256, 2) * 4 - 2
data = DataLoader(TensorDataset(inputs, inputs.prod(1, keepdim=True)), batch_size=64)
module = Regression()
quiet = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
lightning.Trainer(max_epochs=20, callbacks=[Grow(after=(5, 10))], accelerator="cpu", **quiet).fit(
    module, data
)
print(f"loss {module.loss_fn(module.net(inputs), inputs.prod(1, keepdim=True)).item():.3f}, {module.net}")
