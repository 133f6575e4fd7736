"""Images to distil with: what a dataset is, and those that a job can name."""

from .folder import ImageFolderData
from .images import ImageData, Images, batches, image_seeds, normalized, resize, to_channels
from .sources import load_dataset

__all__ = [
    "ImageData",
    "ImageFolderData",
    "Images",
    "batches",
    "image_seeds",
    "load_dataset",
    "normalized",
    "resize",
    "to_channels",
]
