"""Images, whom they show, and which hospital holds them.

Augmented views live in `privfm.data.views`, which needs torch; nothing else here does.
"""

from __future__ import annotations

from privfm.data.check import DataReport, check_folder
from privfm.data.imageset import Boxes, ImageSet, Masks
from privfm.data.partition import hold_out, patient_classes, shared_patients, split_by_hospital
from privfm.data.partition_by_name import hold_out_by_name, split_by_name
from privfm.data.phantom import load_phantom
from privfm.data.pixels import ArrayPixels, FilePixels, Pixels
from privfm.data.procedural import procedural_images
from privfm.data.sources import load_images
from privfm.data.tiles import load_tiles

__all__ = [
    "ArrayPixels",
    "Boxes",
    "DataReport",
    "FilePixels",
    "ImageSet",
    "Masks",
    "Pixels",
    "check_folder",
    "hold_out",
    "hold_out_by_name",
    "load_images",
    "load_phantom",
    "load_tiles",
    "patient_classes",
    "procedural_images",
    "shared_patients",
    "split_by_hospital",
    "split_by_name",
]
