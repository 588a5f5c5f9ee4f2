"""Any algorithm, end to end: train without labels, store, load, measure, and look.

python test.py                                                      the demo: Split-Brain on the embedded photographs
python test.py rotatenet --data my_images --size 64 --epochs 5      one algorithm on your own folder
python test.py all --quick                                          every algorithm for a few steps
"""

import argparse
from pathlib import Path

import torch

from superself import compare, create, list_algorithms, report
from superself.data import open_images, photos
from superself.evaluation import show_neighbours, show_overview
from superself.training import warmup_cosine


def main() -> None:
    options = parse()
    for algorithm in list_algorithms() if options.algorithm == "all" else [options.algorithm]:
        print(f"\n=== {algorithm} ===")
        run(algorithm, options)


def run(algorithm: str, options: argparse.Namespace) -> None:
    """From images to a measured backbone; copy from here."""
    train, test = open_data(options)
    name, tables = f"store/{algorithm}", {}

    # Train without labels. Any torchvision name, "timm:NAME" or a module of your own may be the backbone.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    supervisor = create(algorithm, train, backbone=options.backbone, seed=0).to(device)
    supervisor.supervise(
        lr=options.lr,
        epochs=options.epochs,
        batch_size=options.batch_size,
        name=name,
        lr_scheduler=warmup_cosine(0.1),
        overwrite=True,
    )

    # Load it as another program would: no data set is needed.
    supervisor = create(algorithm).load(name)
    backbone = supervisor.get_backbone().to(device)

    # Measure it against the same network before training, where there are labels to measure with.
    if test is None:
        print(
            "No labels, so there is nothing to measure: pass PATH/train/CLASS and PATH/test/CLASS folders for the table."
        )
    else:
        if options.data == "photos":
            print("The classes: which of the bundled photographs a patch was cut from. Training never saw them.")
        tables["Is it better than before training?"] = compare(backbone, train, test)

    # Look: query images with the images that the backbone finds most similar, and the report with everything in it.
    shown = train if test is None else test
    picture = show_neighbours(backbone, shown, f"{name}.png", random=True)
    if options.overview:
        print(f"views, features and neighbours: {show_overview(backbone, shown, options.overview)}")
    if hasattr(supervisor, "show_reconstruction"):  # predictive and generative ones
        print(f"reconstruction: {supervisor.show_reconstruction(f'{name}.pretext.png', shown)}")
    if hasattr(supervisor, "show_inputs"):
        print(f"inputs of the network: {supervisor.show_inputs(f'{name}.pretext.png', shown)}")
    print(
        f"checkpoint: {name}.pt\nnearest neighbours, trained and untrained: {picture}\nreport: {report(name, tables=tables)}"
    )
    print(f"Your own images: python test.py {algorithm} --data FOLDER --size {options.size}")


def open_data(options: argparse.Namespace) -> tuple:
    """The training images, and labelled test images or None."""
    if options.data == "photos":
        few = 256 if options.quick else None
        return photos("train", options.size, few), photos("test", options.size, few and few // 2)
    if options.data == "cifar10":
        return tuple(open_images(f"cifar10:{split}", image_size=options.size) for split in ("train", "test"))
    if (Path(options.data) / "test").is_dir():
        return tuple(
            open_images(f"imagefolder:{options.data}/{split}", image_size=options.size) for split in ("train", "test")
        )
    return open_images(options.data, image_size=options.size), None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*list_algorithms(), "all"]
    parser.add_argument("algorithm", nargs="?", default="splitbrain", choices=names, help="the algorithm, or all")
    parser.add_argument(
        "--data", default="photos", help="photos, cifar10, or a folder (with train/ and test/ if labelled)"
    )
    parser.add_argument("--size", type=int, default=64, help="pixels that images are stored at")
    parser.add_argument("--backbone", default="mobilenet_v3_small", help="a torchvision name or timm:NAME")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--quick", action="store_true", help="a few steps on few small images: does it run?")
    parser.add_argument("--overview", help="also write the picture of the README to this file")
    options = parser.parse_args()
    if options.quick:
        options.size, options.epochs = 32, 1
    return options


if __name__ == "__main__":
    main()
