"""Growth in a Lightning trainer, by a callback (pip install lightning).

python examples/lightning_callback.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe.callbacks import LightningGrowth, When


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
growth = LightningGrowth(When(epochs=(5, 10)), 3.0, 0.5, net="net", loss=module.loss_fn)
lightning.Trainer(max_epochs=20, callbacks=[growth], accelerator="cpu", **quiet).fit(module, data)
print(f"loss {module.loss_fn(module.net(inputs), inputs.prod(1, keepdim=True)).item():.3f}, {module.net}")
