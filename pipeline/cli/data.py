"""`pipeline data`: fetch and check a dataset, bootstrap it and look at what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Fetch and check a dataset, make masks from it, look at them.", no_args_is_help=True)

Root = Annotated[Path, typer.Argument(help="Folder of the dataset, with images and annotations/.")]
Out = Annotated[Path, typer.Argument(help="The bootstrapped folder.")]


@app.command()
def fetch(
    dataset: Annotated[str, typer.Argument(help="coco_lvis, voc, sbd, ade20k or cocostuff10k.")],
    root: Annotated[Path, typer.Argument(help="Folder to put it in.")],
    only: Annotated[list[str] | None, typer.Option(help="Name of an archive; repeat it for more.")] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Address under which the archives lie by their file names.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
) -> None:
    """Download, verify and unpack a dataset into ROOT; run it again to go on after an interruption."""
    from pipeline.data.download import fetch as library
    from pipeline.data.download.archives import BROUGHT, DATASETS
    from pipeline.runtime.device import GIB
    from pipeline.runtime.errors import UsageError

    if dataset == "cityscapes":
        raise UsageError(
            "Cityscapes cannot be fetched: its licence asks for a login",
            found=", ".join(archive.file for archive in BROUGHT[dataset]),
            allowed=", ".join(DATASETS),
            hint="get both at https://www.cityscapes-dataset.com/downloads/ (or with csDownload of "
            f"cityscapesscripts), put them in {root}, unpack them there, and verify: "
            f"pipeline data check {root} --layout cityscapes",
        )
    if dataset not in DATASETS:
        raise UsageError("no such dataset", found=dataset, allowed=", ".join(DATASETS))
    archives = library.choose(DATASETS[dataset], only)
    work = library.plan(root, archives)
    arrived = {archive.name: size for archive, size in work.todo}
    for archive in archives:
        have = f"{arrived[archive.name] / GIB:.2f} GiB here" if archive.name in arrived else "done"
        checked = "SHA-256" if archive.sha256 else "MD5" if archive.md5 else "the check sums inside"
        checked = f"size and {checked}" if archive.bytes else checked
        about = "" if archive.bytes else "~"
        size = f"{about}{(archive.bytes or archive.about or 0) / GIB:.2f} GiB"
        typer.echo(f"{archive.name:11}{size:>10}  {have:14}{checked:32}{archive.url}")
    typer.echo(f"space needed: about {work.needed / GIB:.1f} GiB; free: {work.free / GIB:.1f} GiB")
    if not dry_run:
        number = library.fetch(root, archives, mirror=mirror)
        typer.echo(f"{root}: {number} fetched, {len(archives) - number} already there")


@app.command()
def check(
    root: Root,
    layout: Annotated[
        str, typer.Option(help="How the dataset lies on disk, see docs/data.md.")
    ] = "coco_lvis",
    voc_augmented: Annotated[bool, typer.Option(help="voc: SBD's masks too.")] = False,
    cocostuff_classes: Annotated[int, typer.Option(help="cocostuff10k: 171 or 182 classes.")] = 171,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Record what bootstrapping is to leave out.")
    ] = False,
    table: Annotated[Path, typer.Option(help="File for the table of all faults and notes.")] = Path(
        "check.csv"
    ),
    workers: Annotated[int, typer.Option(help="Processes that decode and draw.", min=0)] = 0,
) -> None:
    """Read everything under ROOT once and name what is wrong with it; exit code 3 where something is."""
    from pipeline.data.check.layouts import check_layout
    from pipeline.data.download.verify import archive_problems
    from pipeline.data.layouts.layout import LayoutOptions
    from pipeline.runtime.errors import UsageError

    if quarantine and layout != "coco_lvis":
        raise UsageError(
            "no quarantine for this layout", where="--quarantine", found=layout, allowed="coco_lvis"
        )
    options = LayoutOptions(voc_augmented, cocostuff_classes)
    result = check_layout(root, layout, options=options, num_workers=workers)
    result.add(archive_problems(root, layout))
    if quarantine:
        typer.echo(f"quarantine: {result.put_into_quarantine()}")
    result.save(table)
    for weight, kind, number in result.kinds():
        first = next(fault for fault in result.found if fault.kind == kind)
        typer.echo(f"{weight:12}{number:7}  {kind}; first: {first.file}, {first.detail}")
    for split, counts in result.splits.items():
        if layout != "coco_lvis":
            share = counts["labeled"] / max(counts["pixels"], 1)
            typer.echo(f"{split}: {counts['images']} images; {share:.1%} of the pixels are labeled")
            continue
        lvis, stuff = (
            counts[f"pixels of {key}"] / max(counts["pixels"], 1) for key in ("LVIS", "stuff alone")
        )
        typer.echo(
            f"{split}: {counts['images']} images, {counts['with LVIS']} with LVIS annotations, "
            f"{counts['with stuff']} with stuff; {lvis:.1%} of the pixels are LVIS's, {stuff:.1%} stuff's"
        )
    typer.echo(f"{len(result.faults)} faults stand in the way of bootstrapping; everything is in {table}")
    if result.faults:
        raise typer.Exit(3)


@app.command()
def bootstrap(
    root: Root,
    out: Out,
    holdout_fraction: Annotated[
        float, typer.Option(help="Share of the train images kept back for choosing checkpoints.")
    ] = 0.1,
    holdout_seed: Annotated[int, typer.Option(help="Which images are kept back.")] = 0,
    overlap: Annotated[
        str, typer.Option(help="Which annotation keeps a pixel claimed by several: first or smallest.")
    ] = "first",
    keep: Annotated[
        list[str] | None, typer.Option(help="Name or class id of a class to keep; repeat it for more.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="How the dataset lies on disk, see docs/data.md: coco_lvis, voc, masks, ...")
    ] = "coco_lvis",
    voc_augmented: Annotated[bool, typer.Option(help="voc: train on SBD's masks too.")] = False,
    cocostuff_classes: Annotated[int, typer.Option(help="cocostuff10k: 171 or 182 classes.")] = 171,
    workers: Annotated[int, typer.Option(help="Processes that read and draw.", min=0)] = 0,
    check_images: Annotated[bool, typer.Option(help="Open every image and compare its size.")] = True,
) -> None:
    """Turn the annotations under ROOT into class-id masks, splits and a label space in OUT."""
    from pipeline.data.bootstrap.options import BootstrapOptions
    from pipeline.data.layouts.layout import LayoutOptions
    from pipeline.runtime.workers import worker_pool

    options = BootstrapOptions(
        layout=layout,
        holdout_fraction=holdout_fraction,
        holdout_seed=holdout_seed,
        overlap=overlap,
        keep_classes=[_class_key(key) for key in keep] if keep else None,
        check_images=check_images,
        of_layout=LayoutOptions(voc_augmented, cocostuff_classes),
    )
    with worker_pool(workers, "pipeline.data.bootstrap.build") as pool:
        from pipeline.data.bootstrap.build import bootstrap as make  # while the workers start

        result = make(root, out, options, pool=pool)
    typer.echo(f"{out}: {result.label_space.num_classes} classes")
    for split, counts in result.counts.items():
        share = counts.labeled_pixels / max(int(counts.pixels.sum()), 1)
        typer.echo(f"  {split:8}{counts.num_images:7} images, {share:.0%} of their pixels labeled")
    if result.left_out:
        typer.echo(f"  left out{len(result.left_out):7} images, named with the reason in manifest.json")


def _class_key(text: str) -> int | str:
    """Return a class id, or a name; a name of digits stands in quotes."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    return int(text) if text.isascii() and text.isdigit() else text


@app.command()
def masks(
    out: Out,
    folder: Annotated[Path, typer.Argument(help="Where to write the PNG files.")],
    split: Annotated[str | None, typer.Option(help="Only train, holdout or val.")] = None,
) -> None:
    """Write every mask of OUT as <image_id>.png, 16-bit class ids, to look at or use elsewhere."""
    from pipeline.data.loading.visualize import export_masks

    number = export_masks(out, folder, split=split)
    typer.echo(f"{folder}: {number} masks")


@app.command()
def show(
    out: Out,
    image_id: Annotated[int | None, typer.Argument(help="Of the image; without it, all are listed.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="The dataset; by default data.root of params.yaml.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--save", "--to", help="File to write; by default <image_id>.png here.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(help="Enlarge by this factor; by default only small images are.", min=1)
    ] = None,
) -> None:
    """Write a picture of one image with its classes laid over it; without IMAGE_ID, list the images."""
    from pipeline.config.load import load_settings
    from pipeline.data.loading.visualize import list_images, overlay, picture_format
    from pipeline.runtime.files import atomic_path

    if image_id is None:
        for split, one, file in list_images(out):
            typer.echo(f"{split:8}{one:>14}  {file}")
        return
    picture = overlay(out, root or load_settings().data.root, image_id, scale=scale)
    to = to or Path(f"{image_id:012d}.png")
    with atomic_path(to) as temporary:
        picture.save(temporary, format=picture_format(to))
    typer.echo(str(to))
