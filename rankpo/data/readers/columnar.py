"""Records of Parquet and Arrow files. This module needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from rankpo.data.readers.not_a_record import NotARecord
from rankpo.storage.printable import one_line

ROWS_PER_BATCH = 1024  # Limits memory, since a row group of Parquet can hold a million rows.


def parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=ROWS_PER_BATCH)
        yield from _rows(one_line(path.name), batches)
    except (pyarrow.ArrowException, OSError) as error:  # OSError: of damaged pages
        yield one_line(path.name), NotARecord(f"not Parquet, or damaged: {_short(error)}")


def arrow(path: Path) -> Iterator[tuple[str, object]]:
    """Yields the records of Arrow's file format, or of its stream format, which the datasets library writes."""
    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                yield from _rows(one_line(path.name), batches)
            else:
                yield from _rows(one_line(path.name), iter(pyarrow.ipc.open_stream(source)))
    except (pyarrow.ArrowException, OSError) as error:
        yield one_line(path.name), NotARecord(f"not Arrow, or damaged: {_short(error)}")


def _short(error: Exception) -> str:
    """The message of pyarrow in one line."""
    return " ".join(str(error).split())


def _rows(name: str, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[tuple[str, object]]:
    index = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"{name}[{index}]", row
            index += 1
