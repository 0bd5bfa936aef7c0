"""Records of each file as a separate dataset, as in FlagEmbedding's training on a folder of files."""

from __future__ import annotations

from dataclasses import replace

from rankpo.data.readers.records import Records


def by_file(records: Records) -> list[Records]:
    """One dataset for each file, whose name ends with the name of the file.

    Raises ValueError for two files with the same name, because metrics are identified by names.
    """
    stems = [file.name.split(".")[0] for file in records.files]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"by_file=true: several files have the name {repeated[0]}; rename them")
    parts = zip(records.files, stems, strict=True)
    return [replace(records, path=str(file), name=f"{records.name}_{stem}") for file, stem in parts]
