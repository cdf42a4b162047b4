"""A set's Croissant file: its Parquet files with their hashes and columns as JSON-LD, checked before it goes up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow

from videosafety.hub_cards.safety_set import SafetySet
from videosafety.hub_cards.upload import PublishError

SPEC = "http://mlcommons.org/croissant/1.0"
# The context of Croissant 1.0, from its specification, as far as this file uses it.
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
LICENCES = "https://spdx.org/licenses/"
NAMES = {"cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc0-1.0": "CC0-1.0"}
NAMES |= {"apache-2.0": "Apache-2.0", "mit": "MIT", "odc-by": "ODC-By-1.0"}  # the Hub's spelling -> SPDX's
WHOLE = "mlcroissant"
PARTIAL = "our own structural check only, mlcroissant was not installed"


def croissant(found: SafetySet, repo: str, files: Mapping[str, Path], schema: pyarrow.Schema) -> tuple[dict[str, Any], str]:
    """The JSON-LD of a set whose Parquet files are `files` (path in the repository -> local), and who checked it.

    Raises:
        PublishError: it does not pass the check.
    """
    described = describe(found, repo, files, schema)
    return described, check(described)


def describe(found: SafetySet, repo: str, files: Mapping[str, Path], schema: pyarrow.Schema) -> dict[str, Any]:
    """The JSON-LD as a mapping: one file object a Parquet file, one record set a cell."""
    page = f"https://huggingface.co/datasets/{repo}"
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": SPEC,
        "name": found.name.replace(" ", "_"),
        "description": f"{found.title}: {len(found.all_rows):,} rows in {len(found.rows)} cells, {len(found.clips):,} clips.",
        "license": LICENCES + NAMES[found.licence] if found.licence in NAMES else found.licence,
        "url": page,
        "version": found.version or "1.0.0",
        "citeAs": f"{found.title}{f' {found.version}' if found.version else ''} ({found.hash}), {page}",
        "distribution": [_file(page, name, path) for name, path in files.items()],
        "recordSet": [_records(cell, [name for name in files if _cell_of(name) == cell], schema) for cell in found.rows],
    }


def _cell_of(name: str) -> str:
    """The cell of data/<cell>-00000-of-00001.parquet."""
    return Path(name).name.rsplit("-", 3)[0]


def _file(page: str, name: str, path: Path) -> dict[str, Any]:
    with open(path, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(path)
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": f"{page}/resolve/main/{name}",
        "encodingFormat": "application/x-parquet",
        "contentSize": f"{path.stat().st_size} B",
        "sha256": digest,
    }


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _records(cell: str, files: list[str], schema: pyarrow.Schema) -> dict[str, Any]:
    """A cell's record set; its fields come from the first of its files, which all have the same columns."""
    return {
        "@type": "cr:RecordSet",
        "@id": cell,
        "name": cell,
        "description": f"The split {cell}: {', '.join(files)}.",
        "field": [_field(cell, column, files[0]) for column in schema],
    }


def _field(cell: str, column: pyarrow.Field, file: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": file}, "extract": {"column": column.name}}
    kind, repeated = _kind(column.type)
    field: dict[str, Any] = {"@type": "cr:Field", "@id": f"{cell}/{column.name}", "name": f"{cell}/{column.name}", "dataType": kind}
    if column.name == "video":
        source["transform"] = {"jsonPath": "bytes"}
    if repeated:
        field["repeated"] = True
    return field | {"source": source}


def _kind(column: pyarrow.DataType) -> tuple[str, bool]:
    """Croissant's data type of a column, and whether it holds a list of them."""
    if pyarrow.types.is_list(column):
        return _kind(column.value_type)[0], True
    if pyarrow.types.is_struct(column):
        return "sc:VideoObject", False
    if pyarrow.types.is_boolean(column):
        return "sc:Boolean", False
    if pyarrow.types.is_integer(column):
        return "sc:Integer", False
    return ("sc:Float" if pyarrow.types.is_floating(column) else "sc:Text"), False


def check(described: Mapping[str, Any]) -> str:
    """Who found no fault in it: mlcroissant where it is installed, else a look at its structure, named as such.

    Raises:
        PublishError: with the faults.
    """
    try:
        import mlcroissant
    except ImportError:
        if faults := structural_faults(described):
            raise PublishError(f"croissant.json: {'; '.join(faults)}") from None
        return PARTIAL
    try:
        mlcroissant.Dataset(jsonld=json.loads(json.dumps(described)))
    except mlcroissant.ValidationError as error:
        raise PublishError(f"croissant.json is refused by mlcroissant: {' '.join(str(error).split())[:500]}") from error
    return WHOLE


def structural_faults(described: Mapping[str, Any]) -> list[str]:
    """What a look without mlcroissant finds: keys that are missing, fields whose file is not listed, hashes that are none."""
    needed = ("@context", "@type", "conformsTo", "name", "description", "license", "url", "distribution", "recordSet")
    faults = [f"{key} is missing" for key in needed if not described.get(key)]
    listed = {file.get("@id") for file in described.get("distribution") or ()}
    for file in described.get("distribution") or ():
        if len(str(file.get("sha256", ""))) != 64 or not file.get("contentUrl"):
            faults.append(f"{file.get('@id')} has no hash or no address")
    for records in described.get("recordSet") or ():
        for field in records.get("field") or ():
            if field.get("source", {}).get("fileObject", {}).get("@id") not in listed:
                faults.append(f"{field.get('@id')} comes from a file that is not listed")
    return faults
