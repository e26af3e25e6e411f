"""Writes torch_golden.safetensors: weights, inputs and outputs of PyTorch models in inference mode.

    python tests/weights/make_torch_golden.py        (needs torch and safetensors; the tests need neither)

Each case has ``<case>/state/<PyTorch's name>``, ``<case>/input``, in PyTorch's layout, and ``<case>/output``.
"""

import pathlib

import torch  # type: ignore[import-not-found, unused-ignore]
from safetensors.torch import save_file  # type: ignore[import-not-found, unused-ignore]
from torch import nn  # type: ignore[import-not-found, unused-ignore]


class Block(nn.Module):
    """The basic block of CIFAR ResNets in distillation repositories, with their names."""

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = None
        if stride != 1 or inputs != features:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth, filters, classes):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, filters[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters[0])
        for stage in range(3):
            sizes = [filters[stage], *[filters[stage + 1]] * blocks]
            strides = [1 if stage == 0 else 2, *[1] * (blocks - 1)]
            layers = [Block(sizes[i], sizes[i + 1], strides[i]) for i in range(blocks)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(filters[3], classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class FlattenedNet(nn.Module):
    """A linear layer on a flattened map, whose weights depend on the order of flattening."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 4 * 5, 6)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


torch.manual_seed(0)
CASES = {
    "linear": (nn.Linear(4, 4), torch.randn(2, 4)),
    "conv1d": (nn.Conv1d(4, 3, 3, stride=2, padding=1), torch.randn(2, 4, 7)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=2, padding=1), torch.randn(2, 3, 6, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2), torch.randn(1, 2, 3, 4, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, padding=1, groups=3), torch.randn(2, 3, 5, 5)),
    "conv_transpose": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), torch.randn(2, 3, 4, 5)),
    "conv_transpose_square": (nn.ConvTranspose1d(3, 3, 4, stride=2, padding=1), torch.randn(2, 3, 5)),
    "batch_norm": (nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)),
    "layer_norm": (nn.LayerNorm(6), torch.randn(2, 6)),
    "group_norm": (nn.GroupNorm(2, 6), torch.randn(2, 6, 3, 3)),
    "embedding": (nn.Embedding(7, 3), torch.tensor([[0, 6, 2], [5, 5, 1]])),
    "flattened": (FlattenedNet(), torch.randn(2, 2, 4, 5)),
    "attention": (Attention(), torch.randn(2, 5, 8)),
    "lstm": (Recurrent(), torch.randn(2, 5, 3)),
    "resnet8": (ResNet(8, (2, 2, 4, 6), 5), torch.randn(2, 3, 8, 8)),
    "resnet14_wide": (ResNet(14, (2, 4, 6, 8), 5), torch.randn(2, 3, 8, 8)),
}


def main():
    made = {}
    for case, (module, x) in CASES.items():
        module.eval()
        for value in module.state_dict().values():
            if value.is_floating_point():  # initial norms are the identity, which hides mistakes
                value.copy_(0.5 + torch.rand_like(value) if value.ndim == 1 else torch.randn_like(value) * 0.4)
        made |= {f"{case}/state/{name}": value.contiguous() for name, value in module.state_dict().items()}
        with torch.no_grad():
            made[f"{case}/input"], made[f"{case}/output"] = x, module(x).contiguous()
    path = pathlib.Path(__file__).with_name("torch_golden.safetensors")
    save_file(made, path, metadata={"torch": torch.__version__})


if __name__ == "__main__":
    main()
