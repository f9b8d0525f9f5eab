"""List the published archives of COCO 2017, COCO-Stuff and LVIS v1: addresses, sizes, contents.

Addresses are those of cocodataset.org and lvisdataset.org. Neither site publishes digests; sizes and SHA-256
are those that TensorFlow Datasets records for the same addresses (its checksum files for `coco` and `lvis`).
For the stuff annotations no digest was found, only the size that the server announces: there the check sums
inside the archive, which unpacking compares, have to do.
"""

from __future__ import annotations

from dataclasses import dataclass

COCO = "http://images.cocodataset.org"
LVIS = "https://dl.fbaipublicfiles.com/LVIS"
JSON_GROWTH = 3.2
"""Bytes of JSON per byte of archive, about: LVIS's train annotations are 1.1 GB in 350 MB."""


@dataclass(frozen=True)
class Archive:
    """One zip file to fetch.

    Args:
        name: what `--only` calls it.
        url: the official address.
        members: the files wanted from it: those under a folder ("train2017/"), or by their names.
        target: the folder under the dataset's root that they go to.
        bytes: of the archive; None where not published.
        sha256: of the archive; None where not published.
        growth: bytes unpacked per byte of archive, an estimate for planning.
    """

    name: str
    url: str
    members: tuple[str, ...]
    target: str
    bytes: int | None = None
    sha256: str | None = None
    growth: float = 1.0

    @property
    def file(self) -> str:
        """The name of the zip file."""
        return self.url.rpartition("/")[2]


COCO_LVIS = (
    Archive(
        "train2017",
        f"{COCO}/zips/train2017.zip",
        ("train2017/",),
        "train2017",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    Archive(
        "val2017",
        f"{COCO}/zips/val2017.zip",
        ("val2017/",),
        "val2017",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    Archive(
        "stuff",
        f"{COCO}/annotations/stuff_annotations_trainval2017.zip",
        ("stuff_train2017.json", "stuff_val2017.json"),
        "annotations",
        1_148_688_564,
        growth=JSON_GROWTH,
    ),
    Archive(
        "lvis_train",
        f"{LVIS}/lvis_v1_train.json.zip",
        ("lvis_v1_train.json",),
        "annotations",
        350_264_821,
        "334a4caa374030a7817cf050364525e910f7960f9b6968cef47cffbf3893f8ba",
        JSON_GROWTH,
    ),
    Archive(
        "lvis_val",
        f"{LVIS}/lvis_v1_val.json.zip",
        ("lvis_v1_val.json",),
        "annotations",
        64_026_968,
        "5cae9a3c79aadb667550c2b5dcf7f4d86e059a41ec91ef690225b667e28e9ba5",
        JSON_GROWTH,
    ),
)

DATASETS = {"coco_lvis": COCO_LVIS}
