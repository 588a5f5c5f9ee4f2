"""Data sets: opening, decoding, keeping images in memory, batches, and photographs that come with the package."""

from superself.data.batch import Batch, Item
from superself.data.datasets import cifar10, stl10
from superself.data.images import Images, ImageSpec
from superself.data.labels import Labelled
from superself.data.loader import BatchLoader
from superself.data.open import open_images
from superself.data.photographs import photos
from superself.data.preprocessing import Preprocessing
from superself.data.reading import Reading, to_float
from superself.data.sampler import EpochSampler, SequentialBatches
from superself.data.segments import Segmenter, segment_data_set
from superself.data.subset import select_images

__all__ = [
    "Batch",
    "BatchLoader",
    "EpochSampler",
    "ImageSpec",
    "Images",
    "Item",
    "Labelled",
    "Preprocessing",
    "Reading",
    "Segmenter",
    "SequentialBatches",
    "cifar10",
    "open_images",
    "photos",
    "segment_data_set",
    "select_images",
    "stl10",
    "to_float",
]
