"""A table in parts on disk: a Parquet dataset that knows which jobs are finished.

A part appears under its name when it is complete, so that the files themselves are the
record of what is done. Beside them, `_run.json` says what the run was begun with and
`_extents.jsonl` how much the large inputs hold; readers of Parquet datasets pass over
names that begin with a low line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepprior.errors import SeppriorError
from sepprior.many.plan import Extent
from sepprior.many.work import Part, Skipped
from sepprior.outputs import check_output_folder, to_json, whole_files

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
_RUN, _EXTENTS = "_run.json", "_extents.jsonl"
_KEY = b"sepprior"
_DIGESTS = {
    "prior": "another prior",
    "inputs": "other inputs (names, sizes or times of change differ)",
}


class TableStore:
    """The folder of a table and what is finished of it.

    Args:
        folder: where the parts are.
        identity: what the table is made of and how, by name. A table is only
            continued with the same.
        resume: whether to continue what is there.

    Raises:
        SeppriorError: the folder holds something else, or a table while `resume` is
            not set, or a table that was begun with another identity.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, resume: bool
    ) -> None:
        self.folder = folder
        self.extents: dict[int, Extent] = {}
        self.done: dict[str, tuple[int, tuple[Skipped, ...]]] = {}
        check_output_folder(folder)
        identity = json.loads(to_json({"format": FORMAT, **identity}))
        begun = self._begun()
        if begun is None or not any(folder.glob("part-*.parquet")):
            for name in (_RUN, _EXTENTS):
                (folder / name).unlink(missing_ok=True)
            with whole_files(folder / _RUN) as (path,):
                path.write_text(to_json(identity, indent=2) + "\n", encoding="utf-8")
            return
        if not resume:
            raise SeppriorError(
                f"'{folder}' holds a table: continue it with --resume, or name another "
                "folder with --table"
            )
        changed = _changes(begun, identity)
        if changed:
            raise SeppriorError(
                f"'{folder}' was begun with {'; '.join(changed)}: resume with the "
                "same, or name another folder with --table"
            )
        self._find_parts()
        self._find_extents()

    def _begun(self) -> dict[str, Any] | None:
        """What the table in the folder was begun with."""
        if not self.folder.is_dir():
            return None
        try:
            return json.loads((self.folder / _RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(not _is_temporary(path) for path in self.folder.iterdir()):
                raise SeppriorError(
                    f"'{self.folder}' holds other files: name an empty or a new folder "
                    "with --table"
                ) from None
            return None
        except ValueError as error:
            raise SeppriorError(
                f"'{self.folder / _RUN}' is damaged ({error}): name another folder "
                "with --table"
            ) from error

    def _find_parts(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self.folder.iterdir():
            if _is_temporary(path):
                path.unlink()  # of a run that was killed
            elif path.match("part-*.parquet"):
                try:
                    found = pq.read_metadata(path.resolve())
                    told = json.loads((found.metadata or {})[_KEY])
                except (pa.ArrowException, OSError, KeyError, ValueError):
                    continue  # damaged after it was written: done again
                skipped = tuple(Skipped(**item) for item in told["skipped"])
                self.done[path.stem] = (found.num_rows, skipped)

    def _find_extents(self) -> None:
        path = self.folder / _EXTENTS
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for line in lines[:-1]:  # the last one is empty, or cut off
            known = json.loads(line)
            number = known.pop("number")
            self.extents[number] = Extent(**known)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines[:-1])

    def learned(self, number: int, extent: Extent) -> None:
        """Keep how much the large input of this number holds."""
        with (self.folder / _EXTENTS).open("a", encoding="utf-8") as file:
            file.write(to_json({"number": number, **asdict(extent)}) + "\n")

    def write(self, name: str, part: Part) -> None:
        """Write a part, whole or not at all."""
        import pyarrow.parquet as pq

        told = to_json({"skipped": [asdict(item) for item in part.skipped]})
        table: pyarrow.Table = part.table.replace_schema_metadata({_KEY: told.encode()})
        with whole_files(self.folder / f"{name}.parquet") as (path,):
            pq.write_table(table, path.resolve())
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.done[name] = (table.num_rows, part.skipped)

    @property
    def skipped(self) -> list[Skipped]:
        """All inputs that were left out so far, in order."""
        parts = (self.done[name][1] for name in sorted(self.done))
        return [item for skipped in parts for item in skipped]


def _is_temporary(path: Path) -> bool:
    """Whether a file was being written when its run was killed."""
    return path.name.startswith((".part-", "._run.")) and ".tmp." in path.name


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two identities."""
    changed = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name in _DIGESTS:
            changed.append(_DIGESTS[name])
        else:
            changed.append(f"{name} = {before} (now {now})")
    return changed
