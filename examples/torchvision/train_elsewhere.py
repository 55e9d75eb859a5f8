"""Code that knows nothing of glue: a model of torchvision or timm, pretrained, then trained on the digits 5 to 9.

Usage: python train_elsewhere.py mobilenet_v2|vit IMAGES FOLDER, which gets pretrained.pth and elsewhere.pth.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torchvision import transforms
from torchvision.datasets import ImageFolder

name, images, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])


def make_model(num_classes):
    if name == "mobilenet_v2":
        import torchvision

        return torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=num_classes)
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=num_classes, img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4
    )


def train(model, inputs, labels, epochs):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


torch.manual_seed(0)
normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
resize = transforms.Resize(32, transforms.InterpolationMode.BICUBIC)
data = ImageFolder(images, transforms.Compose([resize, transforms.ToTensor(), normalise]))
inputs, labels = torch.stack([image for image, _ in data]), torch.tensor(data.targets)

pretrained = make_model(4)  # tells by how many quarters an image is turned, which needs no labels
turned = torch.cat([inputs.rot90(quarters, (2, 3)) for quarters in range(4)])
train(pretrained, turned, torch.arange(4).repeat_interleave(len(inputs)), epochs=10)
torch.save(pretrained.state_dict(), folder / "pretrained.pth")

model = make_model(10)
body = {key: value for key, value in pretrained.state_dict().items() if not key.startswith(("classifier", "head"))}
model.load_state_dict(body, strict=False)
train(model, inputs[labels >= 5], labels[labels >= 5], epochs=10)
torch.save(model.state_dict(), folder / "elsewhere.pth")
