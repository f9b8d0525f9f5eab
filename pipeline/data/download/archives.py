"""List the published archives: addresses, sizes, digests and contents.

COCO 2017, COCO-Stuff and LVIS v1 come from cocodataset.org and lvisdataset.org. Neither publishes digests:
sizes and SHA-256 are those that TensorFlow Datasets records for the same addresses (its checksum files for
`coco` and `lvis`). For the stuff annotations no digest was found, only the size that the server announces:
there the check sums inside the archive, which unpacking compares, have to do.

Pascal VOC: size and digest as TensorFlow Datasets records them. SBD: torchvision's digest. ADE20K: the digest
that the gluon-cv and PyTorch-Encoding scripts state. For COCO-Stuff 10k none is published. Cityscapes needs a
login: its archives are verified where the user brings them, by the digests of torchvision's prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

COCO = "http://images.cocodataset.org"
LVIS = "https://dl.fbaipublicfiles.com/LVIS"
JSON_GROWTH = 3.2
"""Bytes of JSON per byte of archive, about: LVIS's train annotations are 1.1 GB in 350 MB."""


@dataclass(frozen=True)
class Archive:
    """One archive, zip or tar.

    Args:
        name: what `--only` calls it.
        url: the official address.
        members: the files wanted from it: those under a folder ("train2017/"), or by their names.
        target: the folder under the dataset's root that they go to.
        bytes: of the archive; None where not published.
        sha256: of the archive; None where not published.
        growth: bytes unpacked per byte of archive, an estimate for planning.
        md5: of the archive, where no SHA-256 is published.
        tree: unpack everything with its folders. `members` are folders that must come of it, and `target` is
            the one whose files are counted.
        about: of the archive, in bytes: an estimate where no size is published.
        file_name: where the address does not end in it.
    """

    name: str
    url: str
    members: tuple[str, ...]
    target: str
    bytes: int | None = None
    sha256: str | None = None
    growth: float = 1.0
    md5: str | None = None
    tree: bool = False
    about: int | None = None
    file_name: str | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.file_name or self.url.rpartition("/")[2]


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

VOC = Archive(
    "voc2012",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ("VOCdevkit/VOC2012/",),
    "VOCdevkit/VOC2012",
    1_999_639_040,
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    tree=True,
)
SBD = Archive(
    "sbd",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ("benchmark_RELEASE/dataset/",),
    "benchmark_RELEASE/dataset",
    sha256="6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    tree=True,
    about=1_420_000_000,
)
ADE20K = Archive(
    "ade20k",
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    ("ADEChallengeData2016/",),
    "ADEChallengeData2016",
    md5="7328b3957e407ddae1d3cbf487f149ef",
    tree=True,
    about=970_000_000,
)
COCOSTUFF10K = Archive(
    "cocostuff10k",
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip",
    ("images/", "annotations/", "imageLists/"),
    "annotations",
    tree=True,
    about=2_000_000_000,
)
CITYSCAPES = "https://www.cityscapes-dataset.com/file-handling/?packageID="
CITYSCAPES_FINE = (
    Archive(
        "gtFine",
        f"{CITYSCAPES}1",
        ("gtFine/",),
        "gtFine",
        sha256="40461a50097844f400fef147ecaf58b18fd99e14e4917fb7c3bf9c0d87d95884",
        md5="4237c19de34c8a376e9ba46b495d6f66",
        tree=True,
        about=252_567_705,
        file_name="gtFine_trainvaltest.zip",
    ),
    Archive(
        "leftImg8bit",
        f"{CITYSCAPES}3",
        ("leftImg8bit/",),
        "leftImg8bit",
        sha256="3ccff9ac1fa1d80a6a064407e589d747ed0657aac7dc495a4403ae1235a37525",
        md5="0a6e97e94b616a514066c9e2adb0c97f",
        tree=True,
        about=11_592_327_197,
        file_name="leftImg8bit_trainvaltest.zip",
    ),
)

DATASETS = {
    "coco_lvis": COCO_LVIS,
    "voc": (VOC,),
    "sbd": (SBD,),
    "ade20k": (ADE20K,),
    "cocostuff10k": (COCOSTUFF10K,),
}
"""What can be fetched without a login."""

BROUGHT = {
    "cityscapes": CITYSCAPES_FINE,
    "voc": (VOC, SBD),
    "ade20k": (ADE20K,),
    "cocostuff10k": (COCOSTUFF10K,),
}
"""Archives of each layout that are verified where they lie in the dataset's folder."""
