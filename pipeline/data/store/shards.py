"""Store masks in Arrow files of up to some thousand images, and read them through the memory map.

Few large files instead of one small one per image, as DVC and network disks want it; loader processes share
the pages. A mask is the raw little-endian 16-bit class ids, row by row, compressed with zstd level 1: 0.5 ms
and 2.3 kB an image, where PNG takes 2 ms and 5.9 kB. No tensors here: bootstrapping runs without torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.runtime.errors import DataError

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask", pa.binary()),
        ("class_ids", pa.list_(pa.uint16())),
        ("pixel_counts", pa.list_(pa.int64())),
    ]
)
ROWS_PER_BATCH = 32
"""At most: images without a label get no row."""
REMAKE = "make it again: pipeline data bootstrap ROOT OUT"


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One image.

    Args:
        image_id: COCO's.
        file: of the image, relative to the dataset's root.
        height: in pixels.
        width: in pixels.
        mask: the compressed class ids.
        class_ids: of the classes present, ascending, without the unlabeled.
        pixel_counts: the pixels of each of them.
    """

    image_id: int
    file: str
    height: int
    width: int
    mask: bytes
    class_ids: list[int]
    pixel_counts: list[int]


def compress_mask(mask: np.ndarray) -> bytes:
    """Compress (H, W) class ids of 0..65,535."""
    raw = np.ascontiguousarray(mask, dtype="<u2")
    packed: bytes = pa.Codec("zstd", compression_level=1).compress(raw, asbytes=True)
    return packed


def serialize_rows(rows: Sequence[MaskRow]) -> bytes:
    """Serialize rows as one Arrow record batch; workers call it, and its bytes depend on the rows alone."""
    columns = []
    for field in SCHEMA:
        values = [getattr(row, field.name) for row in rows]
        if pa.types.is_list(field.type):
            inner = _fixed(itertools.chain.from_iterable(values), field.type.value_type)
            offsets = _fixed(_offsets(values), pa.int32())
            columns.append(pa.ListArray.from_arrays(offsets, inner, field.type))
        elif field.type in (pa.string(), pa.binary()):
            parts = [value.encode() if isinstance(value, str) else value for value in values]
            buffers = [None, pa.py_buffer(np.array(_offsets(parts), "<i4")), pa.py_buffer(b"".join(parts))]
            columns.append(pa.Array.from_buffers(field.type, len(parts), buffers))
        else:
            columns.append(_fixed(values, field.type))
    serialized: bytes = pa.record_batch(columns, schema=SCHEMA).serialize().to_pybytes()
    return serialized


def _fixed(values: Iterable[int], kind: Any) -> Any:
    """Make an array of whole numbers from its buffer: `pa.array` would import pandas, for a second or two."""
    numbers = np.fromiter(values, str(kind))
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _offsets(values: Sequence[Sized]) -> list[int]:
    return list(itertools.accumulate(map(len, values), initial=0))


def write_shard(path: Path, batches: Iterable[bytes]) -> None:
    """Write one file from what `serialize_rows` gave."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), SCHEMA))


class MaskShards:
    """The rows of several files as one sequence, opened when first asked for in each process.

    Args:
        paths: the files, in order.
        counts: the rows that each must hold.

    Raises:
        DataError: at the first access, where a file is missing, damaged, or of another number of rows.
    """

    def __init__(self, paths: list[Path], counts: list[int]) -> None:
        self.paths, self.counts = paths, counts
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._tables: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.counts else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}}  # a worker process maps the files itself

    def row(self, index: int) -> MaskRow:
        """Return the row at 0 <= index < len, its mask still compressed."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        table = self._table(shard)
        place = index - (int(self._ends[shard]) - self.counts[shard])
        values = {field.name: table.column(field.name)[place].as_py() for field in SCHEMA}
        return MaskRow(**values)

    def mask(self, row: MaskRow) -> np.ndarray:
        """Return the (H, W) uint16 class ids of a row, writeable.

        Raises:
            DataError: the bytes are damaged.
        """
        try:
            raw = pa.Codec("zstd").decompress(row.mask, row.height * row.width * 2, asbytes=True)
            ids = np.frombuffer(raw, dtype="<u2").reshape(row.height, row.width)
        except (OSError, ValueError) as error:
            raise DataError(
                "damaged mask",
                where=f"{self.paths[0].parent}: image {row.image_id}",
                found=error,
                hint=REMAKE,
            ) from error
        return ids.astype(np.uint16)

    def column(self, name: str) -> Iterator[Any]:
        """Yield one column of all rows, in order, as plain values."""
        for shard in range(len(self.paths)):
            yield from self._table(shard).column(name).to_pylist()

    def _table(self, shard: int) -> Any:
        if shard not in self._tables:
            path, found = self.paths[shard], None
            try:
                with pa.memory_map(str(path)) as source:
                    table = pa.ipc.open_file(source).read_all()
                if table.schema != SCHEMA or table.num_rows != self.counts[shard]:
                    found = f"{table.num_rows} rows of {', '.join(table.column_names)}"
            except (OSError, ValueError) as error:
                found = str(error)
            if found is not None:
                raise DataError(
                    "missing or damaged file of masks",
                    where=path,
                    found=found,
                    allowed=f"{self.counts[shard]} rows as in the manifest",
                    hint=REMAKE,
                )
            self._tables[shard] = table
        return self._tables[shard]
